from dataclasses import replace

import numpy as np
import pytest
import torch

from recengine.data import Ragged, leave_last_out
from recengine.errors import InputError
from recengine.training.encode import encode
from recengine.training.recommender import lookup


@pytest.fixture
def encoded(planted):
    return encode(leave_last_out(planted), 5)


def test_features_stand_in_wire_order(encoded):
    assert [spec.name for spec in encoded.features] == ["user_id", "history", "country"]
    assert [spec.name for spec in encoded.item_features] == ["item_id", "tags"]
    assert encoded.dense_features == ("height",)
    assert {spec.name for spec in encoded.features if spec.hashed} == {"country"}


def test_a_batch_is_what_its_request_looks_up_to(encoded):
    positions = encoded.split.test
    rows, dense = encoded.user_batch(positions)
    requests = encoded.requests(positions)
    for spec in encoded.features:
        keys = encoded.vocabularies[spec.vocabulary]
        expected = lookup(keys, requests.features[spec.name]).padded(spec.max_length, -1)
        torch.testing.assert_close(rows[spec.name], torch.from_numpy(expected))
    np.testing.assert_array_equal(dense, requests.dense)
    assert [len(ids) for ids in requests.excluded] == [13] * 90
    targets = encoded.vocabularies["item_id"][encoded.targets(positions)]
    np.testing.assert_array_equal(targets, requests.targets)


def test_what_was_taken_before_is_excluded(encoded):
    positions = encoded.split.validation
    taken = encoded.taken_before(positions)
    for row, past in zip(taken, encoded.split.history(positions), strict=True):
        assert set(np.flatnonzero(row)) == set(past)


def test_popularity_counts_training_only(encoded):
    assert encoded.popularity.sum() == len(encoded.split.train)


def test_unknown_ids_have_row_zero():
    found = lookup(np.array([7, 3, 5]), Ragged.of([[3, 4], [], [5, 7, -1]]))
    assert found.values.tolist() == [2, 0, 3, 1, 0]
    assert lookup(np.array([], np.int64), Ragged.of([[3]])).values.tolist() == [0]


def test_unknown_numbers_take_the_mean_of_the_known(planted):
    height = planted.users.dense["height"].copy()
    height[3] = np.nan
    dense = {"height": height, "weight": np.full(len(height), np.nan, np.float32)}
    dataset = replace(planted, users=replace(planted.users, dense=dense))
    encoded = encode(leave_last_out(dataset), 5)
    mean = pytest.approx(np.nanmean(height), rel=1e-5)
    assert encoded.dense_means == {"height": mean, "weight": 0.0}
    assert encoded.user_dense[3].tolist() == [mean, 0.0]
    assert encoded.user_dense[4, 0] == height[4]


def test_a_column_with_a_taken_name_is_refused(planted):
    users = replace(planted.users, sparse={"history": planted.users.sparse["country"]})
    with pytest.raises(InputError, match="column 'history': this name is taken"):
        encode(leave_last_out(replace(planted, users=users)), 5)
