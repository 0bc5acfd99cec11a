import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recengine import ops
from recengine.errors import InputError

LOWEST, HIGHEST = -(2**63), 2**63 - 1
EDGES = [LOWEST, LOWEST + 1, -2, -1, 0, 1, HIGHEST - 1, HIGHEST]

ids = st.one_of(st.sampled_from(EDGES), st.integers(-20, 20), st.integers(LOWEST, HIGHEST))


@settings(max_examples=200)
@given(keys=st.lists(ids.filter(lambda key: key != -1), unique=True), wanted=st.lists(ids))
def test_lookup_equals_a_dict(device, keys, wanted):
    rows = {key: row + 1 for row, key in enumerate(keys)}
    vocabulary = ops.Vocabulary.from_keys(np.array(keys, np.int64))
    wanted += keys
    found = device.lookup(vocabulary, np.array(wanted, np.int64))
    assert found.tolist() == [rows.get(key, 0) for key in wanted]
    assert vocabulary.size == len(keys)


@settings(max_examples=200)
@given(first=ids, count=st.integers(0, 50), wanted=st.lists(ids))
def test_a_range_equals_a_dict_or_is_refused(device, first, count, wanted):
    keys = range(first, first + count)
    if count > 0 and (keys[-1] > HIGHEST or -1 in keys):
        with pytest.raises(InputError):
            ops.Vocabulary.range(first, count)
        return
    rows = {key: row + 1 for row, key in enumerate(keys)}
    wanted += list(keys)
    found = device.lookup(ops.Vocabulary.range(first, count), np.array(wanted, np.int64))
    assert found.tolist() == [rows.get(key, 0) for key in wanted]


def test_lookup_keeps_the_shape(device):
    vocabulary = ops.Vocabulary.range(0, 9)
    assert device.lookup(vocabulary, [[1, 2], [3, 99]]).tolist() == [[2, 3], [4, 0]]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 1000, 99_999])
def test_slots_take_at_most_16_bytes_a_key_and_one_is_empty(count):
    keys, rows = ops.build_slots(np.arange(count) * 7)
    assert keys.nbytes + rows.nbytes <= max(12, 16 * count + 12)
    assert (rows == -1).any()


def test_a_damaged_table_without_an_empty_slot_still_answers(device):
    vocabulary = ops.Vocabulary(np.zeros(8, np.int64), np.full(8, 3, np.int32), 8)
    assert device.lookup(vocabulary, [5, 0]).tolist() == [0, 3]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([4, 5, 4], "position 2 repeats key 4 of position 0"),
        ([4, -1], "position 1 is -1"),
        ([1.5], "expected int64, found float64"),
        ([[1]], "expected rank 1, found 2"),
        (np.array([2**63], np.uint64), "expected values within int64"),
    ],
)
def test_keys_that_cannot_be_a_vocabulary_are_refused(keys, message):
    with pytest.raises(InputError, match=message):
        ops.Vocabulary.from_keys(keys)


def test_slots_that_disagree_are_refused():
    with pytest.raises(InputError, match="found 2 keys and 1 rows"):
        ops.Vocabulary(np.zeros(2, np.int64), np.zeros(1, np.int32), 1)


def test_a_large_lookup_equals_a_dict(device):
    keys = np.random.default_rng(0).permutation(20_000)[:10_000] * 977
    wanted = np.arange(20_000) * 977
    rows = dict(zip(keys.tolist(), range(1, 10_001), strict=True))
    found = device.lookup(ops.Vocabulary.from_keys(keys), wanted)
    assert found.tolist() == [rows.get(key, 0) for key in wanted.tolist()]
