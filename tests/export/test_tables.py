"""Vocabularies and rows as export lays them out."""

import numpy as np
import pytest

from recengine import ops
from recengine.errors import InputError
from recengine.export.tables import TensorFile, add_fallback, add_index, add_table, add_vocabulary
from recengine.keys import hash_key


@pytest.fixture
def file():
    return TensorFile("tensors.safetensors")


@pytest.mark.parametrize("keys", [[5], [5, 6, 7], [-9, -8], []])
def test_consecutive_ids_become_a_range_without_a_file(file, keys):
    vocabulary = add_vocabulary(file, "ids", np.array(keys, np.int64))
    assert (vocabulary.kind, vocabulary.count) == ("range", len(keys))
    assert vocabulary.first == (keys[0] if keys else 0)
    assert file.tensors == {}


@pytest.mark.parametrize("keys", [[6, 5, 7], [5, 7], [2**63 - 1, -(2**63)]])
def test_other_ids_are_hashed_in_the_order_of_training(file, keys):
    vocabulary = add_vocabulary(file, "ids", np.array(keys, np.int64))
    assert vocabulary.kind == "hashed"
    slots = ops.Vocabulary(
        file.tensors[vocabulary.keys.tensor],
        file.tensors[vocabulary.rows.tensor],
        vocabulary.count,
    )
    assert slots.lookup([*keys, 123456]).tolist() == [*range(1, len(keys) + 1), 0]


@pytest.mark.parametrize("keys", [[-1], [3, -1, 4], [-2, -1, 0]])
def test_the_key_that_means_no_item_is_refused(file, keys):
    with pytest.raises(InputError, match=rf"'items'.* position {keys.index(-1)}"):
        add_vocabulary(file, "items", np.array(keys, np.int64))


def test_two_keys_of_one_id_are_refused(file):
    keys = np.array([hash_key("a"), hash_key("b"), hash_key("a")])
    with pytest.raises(InputError, match=f"'items'.*found {hash_key('a')} 2 times"):
        add_vocabulary(file, "items", keys)


@pytest.mark.parametrize(("row_type", "relative"), [("fp32", 0), ("fp16", 2**-11), ("int8", 0)])
def test_rows_are_stored_within_half_a_step(file, row_type, relative):
    values = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    table = add_table(file, "table", values, row_type)
    data = file.tensors["table"]
    scales = file.tensors.get("table.scales")
    stored = ops.EmbeddingTable(data, scales).to_array()
    step = 0 if scales is None else scales[:, None] / 2 * 1.0001
    assert (np.abs(stored - values) <= np.abs(values) * relative + step).all()
    assert (table.row_type, table.scales is None) == (row_type, row_type != "int8")


def test_a_value_beyond_fp16_is_refused(file):
    values = np.full((3, 2), 1, np.float32)
    values[2, 1] = 1e6
    with pytest.raises(InputError, match='"table" as fp16: row 2'):
        add_table(file, "table", values, "fp16")


def test_an_item_vector_of_zeros_stays_zero(file):
    add_index(file, np.array([[3, 4], [0, 0]], np.float32), np.array([7, 8]))
    np.testing.assert_allclose(file.tensors["vectors"], [[0.6, 0.8], [0, 0]])


def test_the_fallback_of_items_that_nobody_took_has_scores_of_zero(file):
    add_fallback(file, np.zeros(4, np.int64), 2)
    assert file.tensors["fallback_scores"].tolist() == [0] * 4
    assert file.tensors["fallback_rows"].tolist() == [0, 1, 2, 3]
