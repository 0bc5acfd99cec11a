"""A tiny recommender with random weights, as training would hand it over."""

import numpy as np
import pytest
import torch

from recengine.bundle import Bag
from recengine.data.dataset import Ragged
from recengine.models import DLRM, DLRMConfig, TableShape, TwoTower, TwoTowerConfig
from recengine.training.recommender import FeatureSpec, Quality, Recommender, Requests

NUM_USERS, NUM_ITEMS, NUM_TAGS, DIM = 12, 40, 5, 8


def bag(feature, table, max_length, pooling="mean"):
    return Bag(feature=feature, table=table, pooling=pooling, max_length=max_length)


def _make_recommender(dense=("age",), seed=0):
    """User ids are a range, item ids are sparse, the same history feeds two bags."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    shapes = {
        "user_id": TableShape(rows=NUM_USERS + 1, dim=DIM),
        "item_id": TableShape(rows=NUM_ITEMS + 1, dim=DIM),
        "tag": TableShape(rows=NUM_TAGS + 1, dim=DIM),
    }
    shared = {
        "user_bags": (
            bag("user_id", "user_id", 1, "sum"),
            bag("history", "item_id", 6),
            bag("history", "item_id", 2, "sum"),
        ),
        "item_bags": (bag("item_id", "item_id", 1, "sum"), bag("tags", "tag", 3)),
        "tables": shapes,
        "dim": DIM,
        "hidden": (16,),
        "num_user_dense": len(dense),
        "num_item_dense": 1,
    }
    items = rng.permutation(1000)[:NUM_ITEMS].astype(np.int64) - 3
    items[items == -1] = 2000
    histories = [rng.choice(items, size) for size in rng.integers(1, 12, NUM_USERS)]
    histories[0] = np.append(histories[0], 777_777)  # an item that nobody knows
    return Recommender(
        name="tiny",
        features=(
            FeatureSpec("user_id", "user_id", 1),
            FeatureSpec("history", "item_id", 6),
        ),
        dense_features=dense,
        item_features=(FeatureSpec("item_id", "item_id", 1), FeatureSpec("tags", "tag", 3)),
        item_vocabulary="item_id",
        vocabularies={
            "user_id": np.arange(100, 100 + NUM_USERS),
            "item_id": items,
            "tag": np.arange(1, NUM_TAGS + 1),
        },
        retrieval=TwoTower(TwoTowerConfig(**shared)),
        ranking=DLRM(DLRMConfig(**shared)),
        item_rows={
            "item_id": np.arange(1, NUM_ITEMS + 1)[:, None],
            "tags": np.where(
                rng.random((NUM_ITEMS, 3)) < 0.5, -1, rng.integers(1, NUM_TAGS + 1, (NUM_ITEMS, 3))
            ),
        },
        item_dense=rng.standard_normal((NUM_ITEMS, 1)).astype(np.float32),
        popularity=rng.integers(0, 50, NUM_ITEMS),
        num_candidates=20,
        k=5,
        held_out=Requests(
            features={
                "user_id": Ragged.of([[100 + user] for user in range(NUM_USERS)]),
                "history": Ragged.of(histories),
            },
            dense=rng.standard_normal((NUM_USERS, len(dense))).astype(np.float32),
            excluded=Ragged.of([np.unique(history) for history in histories]),
            targets=rng.choice(items, NUM_USERS),
        ),
        quality=(Quality("two-tower", NUM_USERS, {"recall@10": 0.25}),),
        dataset={"name": "random"},
    )


@pytest.fixture(scope="session")
def make_recommender():
    return _make_recommender


@pytest.fixture(scope="session")
def recommender():
    return _make_recommender()
