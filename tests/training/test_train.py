from dataclasses import replace

import numpy as np
import pytest
import torch

from recengine.data import Dataset, FeatureTable, Interactions, leave_last_out, time_ratio
from recengine.errors import InputError
from recengine.training import checkpoint
from recengine.training.encode import encode
from recengine.training.evaluate import evaluate
from recengine.training.train import train


def test_training_finds_what_popularity_cannot_see(trained):
    quality = {row.method: row.metrics["ndcg@10"] for row in trained[1]}
    assert list(quality) == ["popularity", "item-kNN", "retrieval", "retrieval + ranking"]
    assert quality["retrieval"] > 2 * quality["popularity"]
    assert quality["retrieval + ranking"] > 2 * quality["popularity"]


def test_the_checkpoint_answers_what_evaluation_measured(trained, planted):
    recommender = checkpoint.load(trained[0])
    encoded = encode(leave_last_out(planted), 5)
    again = evaluate(encoded, recommender.retrieval, recommender.ranking, encoded.split.test, 20)
    assert again == trained[1] == recommender.quality


def test_one_seed_gives_one_model(planted, small_config, tmp_path):
    weights = []
    for out in (tmp_path / "a", tmp_path / "b"):
        train(planted, out, config=small_config, max_epochs=2, seed=3, progress=False)
        weights.append(checkpoint.load(out).ranking.state_dict())
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=0, atol=0)


def test_items_that_training_never_saw_take_the_unknown_row(planted, small_config, tmp_path):
    split = leave_last_out(planted)
    split = replace(split, train=split.train[split.item_idx[split.train] != 7])
    train(planted, tmp_path / "c", config=small_config, split=split, max_epochs=1, progress=False)
    recommender = checkpoint.load(tmp_path / "c")
    for tables, name in (
        (recommender.retrieval.tables, "retrieval_item_id"),
        (recommender.ranking.tables, "ranking_item_id"),
    ):
        assert (tables[name][7 + 1] == tables[name][0]).all()
        assert (tables[name][6 + 1] != tables[name][0]).any()


def test_any_split_is_trained_on_and_recorded(planted, small_config, tmp_path):
    split = time_ratio(planted, (0.7, 0.15, 0.15))
    out = tmp_path / "out"
    quality = train(planted, out, config=small_config, split=split, max_epochs=2, progress=False)
    recommender = checkpoint.load(out)
    assert recommender.dataset == {"format": "synthetic", "split": "time-ratio:0.7,0.15,0.15"}
    assert {row.users for row in quality} == {len(split.test)}
    # A user of several targets is asked for each, with what was taken until then.
    held_out = recommender.held_out
    assert len(held_out.targets) == len(split.test) > len(np.unique(split.user_idx[split.test]))
    np.testing.assert_array_equal(held_out.excluded.lengths, split.test - split.starts[split.test])


def test_a_split_without_test_targets_is_refused(planted, tmp_path):
    with pytest.raises(InputError, match=r"expected test targets, found none$"):
        train(planted, tmp_path / "out", split=time_ratio(planted, (0.5, 0.5, 0.0)))


def dataset_of(users, items):
    """Interactions, oldest first, and nothing else."""
    ids = np.array([users, items])
    taken = Interactions(*ids, np.arange(len(users)))
    return Dataset("d", taken, *(FeatureTable(np.unique(one)) for one in ids))


def test_no_test_targets_because_all_are_repeats_is_said(tmp_path):
    """As when each row stands twice."""
    items = np.repeat(np.arange(5), 2)
    dataset = dataset_of(np.repeat([1, 2], 10), np.concatenate([items, items]))
    message = r"expected test targets, found none; 10 of 20 interactions .* the user had before"
    with pytest.raises(InputError, match=message):
        train(dataset, tmp_path / "out")


def test_no_test_targets_because_histories_are_short_is_said(tmp_path):
    dataset = dataset_of([1, 1, 2, 2], [1, 2, 1, 2])
    message = r"expected validation targets, found none; .* of a user, found at most 2$"
    with pytest.raises(InputError, match=message):
        train(dataset, tmp_path / "out")


def test_users_of_one_interaction_teach_nothing(planted, tmp_path):
    split = leave_last_out(planted)
    split = replace(split, train=split.train[split.starts[split.train] == split.train])
    with pytest.raises(InputError, match="expected users with two train targets"):
        train(planted, tmp_path / "out", split=split)
