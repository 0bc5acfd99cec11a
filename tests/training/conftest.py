"""A synthetic data set with a planted structure that popularity cannot see."""

import numpy as np
import pytest

from recengine.data import Dataset, FeatureTable, Interactions, Ragged
from recengine.keys import hash_key
from recengine.training.config import RankingConfig, RetrievalConfig, TrainingConfig

USERS, ITEMS, GROUPS, LENGTH = 90, 45, 3, 14


@pytest.fixture(scope="session")
def planted():
    """A user of group g takes items of group g only; within it, mostly in one fixed cycle."""
    rng = np.random.default_rng(0)
    size = ITEMS // GROUPS
    users, items, times = [], [], []
    for user in range(USERS):
        place, taken = rng.integers(size), set()
        for step in range(LENGTH):
            while place in taken:
                place = (place + 1) % size
            taken.add(place)
            users.append(1000 + user)
            items.append(5 * (size * (user % GROUPS) + place))
            times.append(100 * step + user)
            place = (place + (1 if rng.random() < 0.9 else rng.integers(size))) % size
    order = np.argsort(times, kind="stable")
    taken_by = Interactions(*(np.array(column)[order] for column in (users, items, times)))
    item_ids = 5 * np.arange(ITEMS)
    # Unequal lists: the first item has two tags, the second none.
    tags = [[hash_key(f"tag {i % 4}")] for i in range(ITEMS)]
    tags[0], tags[1] = [hash_key("tag 0"), hash_key("tag 1")], []
    return Dataset(
        "planted",
        taken_by,
        FeatureTable(
            1000 + np.arange(USERS),
            {"country": Ragged.of([[hash_key(f"country {u % 2}")] for u in range(USERS)])},
            {"height": rng.normal(size=USERS).astype(np.float32)},
            hashed=frozenset({"country"}),
        ),
        FeatureTable(
            item_ids,
            {"tags": Ragged.of(tags)},
            {"price": rng.normal(size=ITEMS).astype(np.float32)},
            hashed=frozenset({"tags"}),
        ),
        source={"format": "synthetic"},
    )


@pytest.fixture(scope="session")
def small_config():
    return TrainingConfig(
        max_epochs=15,
        num_candidates=20,
        retrieval=RetrievalConfig(
            dim=16,
            hidden=(16,),
            history_lengths=(1, 5),
            batch_size=128,
            learning_rate=1e-2,
            patience=4,
        ),
        ranking=RankingConfig(
            dim=8,
            hidden=(16,),
            history_lengths=(1, 5),
            batch_size=128,
            negatives=10,
            learning_rate=1e-2,
            epochs=15,
        ),
    )


@pytest.fixture(scope="session")
def trained(planted, small_config, tmp_path_factory):
    """A checkpoint directory and the quality that training returned."""
    from recengine.training.train import train

    out = tmp_path_factory.mktemp("trained") / "checkpoint"
    return out, train(planted, out, config=small_config, progress=False)
