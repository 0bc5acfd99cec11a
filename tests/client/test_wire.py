"""Packing of named features, against a naive oracle."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recengine.client import Feature, Schema, _request, pack_users
from recengine.client._request import Served, rank_request
from recengine.client.wire import check_wire
from recengine.errors import InputError
from recengine.keys import hash_key

SCHEMA = Schema(
    name="test",
    features=(Feature("user_id", 1), Feature("history", 4), Feature("tags", 3, hashed=True)),
    dense_features=("age", "income"),
    num_items=100,
    num_candidates=20,
    max_candidates=50,
    k=10,
)
INT64 = st.integers(-(2**63), 2**63 - 1)
FLOAT32 = st.floats(allow_nan=False, allow_infinity=False, width=32)
USER = st.fixed_dictionaries(
    {"age": FLOAT32, "income": FLOAT32 | st.integers(-1000, 1000)},
    optional={
        "user_id": INT64 | st.lists(INT64, max_size=3),
        "history": st.lists(INT64, max_size=9)
        | st.lists(INT64, max_size=9).map(lambda ids: np.array(ids, np.int64))
        | st.lists(INT64, max_size=9).map(tuple),
        "tags": st.text(max_size=3) | st.lists(st.text(max_size=3) | st.just(-1), max_size=5),
    },
)
BATCH = st.lists(st.tuples(USER, st.lists(INT64, max_size=5)), min_size=1, max_size=6)


def naive_lists(user, exclude):
    """The ids of one user, feature by feature, then the excluded items."""
    lists = []
    for feature in SCHEMA.features:
        value = user.get(feature.name, [])
        keys = [value] if isinstance(value, (int, str)) else list(value)
        ids = [hash_key(key) if isinstance(key, str) else int(key) for key in keys]
        last = ids[-feature.max_length :]
        lists.append(ids if -1 in last else last)
    return [*lists, list(exclude)]


@given(BATCH)
def test_packing_equals_a_naive_loop(batch):
    users, excludes = [user for user, _ in batch], [exclude for _, exclude in batch]
    wire = pack_users(SCHEMA, users, excludes)
    assert (wire.ids.dtype, wire.lengths.dtype, wire.dense.dtype) == ("int64", "int32", "float32")
    assert wire.lengths.shape == (len(batch), 4)
    for row, (user, exclude) in enumerate(batch):
        lists = naive_lists(user, exclude)
        packed = [number for ids in lists for number in ids]
        assert wire.lengths[row].tolist() == [len(ids) for ids in lists]
        assert wire.ids[row, : len(packed)].tolist() == packed
        assert (wire.ids[row, len(packed) :] == -1).all()
        assert wire.dense[row].tolist() == [np.float32(user["age"]), np.float32(user["income"])]


def test_a_padded_history_keeps_its_items():
    wire = pack_users(SCHEMA, [{"age": 0, "income": 0, "history": [5, 6, 7] + [-1] * 30}])
    assert wire.lengths[0, 1] == 33
    assert wire.ids[0, :4].tolist() == [5, 6, 7, -1]


@given(BATCH)
def test_a_batch_packs_as_each_user_alone(batch):
    users, excludes = [user for user, _ in batch], [exclude for _, exclude in batch]
    together = pack_users(SCHEMA, users, excludes)
    for row, (user, exclude) in enumerate(batch):
        alone = pack_users(SCHEMA, [user], [exclude])
        count = alone.lengths.sum()
        assert (together.lengths[row] == alone.lengths[0]).all()
        assert (together.ids[row, :count] == alone.ids[0, :count]).all()
        assert (together.dense[row] == alone.dense[0]).all()


def test_without_exclude_and_dense_features_those_parts_are_empty():
    schema = Schema("test", (Feature("user_id", 1),), (), 1, 1, 1, 1)
    wire = pack_users(schema, [{}, {"user_id": 7}])
    assert wire.dense is None
    assert wire.lengths.tolist() == [[0, 0], [1, 0]]
    assert wire.ids.tolist() == [[-1], [7]]


AGED = {"age": 1, "income": 2.5}


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ({**AGED, "hist": [1]}, "user 1: unknown feature 'hist'; the model takes age, history"),
        ({**AGED, "user_id": "x"}, "user 1, 'user_id': expected an int64 id, found str 'x'"),
        ({**AGED, "user_id": 1.0}, "user 1, 'user_id': expected an int64 id, found float 1.0"),
        ({**AGED, "user_id": True}, "user 1, 'user_id': expected an int64 id, found bool True"),
        ({**AGED, "user_id": [None]}, "user 1, 'user_id': expected an int64 id, found NoneType"),
        ({**AGED, "user_id": 2**63}, "user 1, 'user_id': expected an id in int64, found 92233"),
        ({**AGED, "history": [1, "2"]}, "user 1, 'history': expected an int64 id, found str '2'"),
        ({**AGED, "history": [1, np.nan]}, "user 1, 'history': expected an int64 id, found float"),
        ({**AGED, "history": {1, 2}}, "user 1, 'history': expected an int64 id, found set"),
        ({**AGED, "history": np.zeros((2, 2), int)}, r"'history': expected ids \[length\], found"),
        ({**AGED, "history": np.array([2**63], np.uint64)}, "'history': expected an id in int64"),
        ({**AGED, "history": [np.array([1, 2])]}, "user 1, 'history': expected an int64 id, found"),
        ({**AGED, "tags": b"x"}, "user 1, 'tags': expected strings, .*, found bytes b'x'"),
        ({**AGED, "tags": 3}, "user 1, 'tags': expected strings, .*, found int 3"),
        ({**AGED, "tags": ["a", 3]}, "user 1, 'tags': expected strings, .*, found int 3"),
        ({**AGED, "tags": np.int64(3)}, "user 1, 'tags': expected strings, .*, found int64 "),
        ({**AGED, "tags": np.array([3])}, "user 1, 'tags': expected strings, .*, found int 3"),
        ({**AGED, "tags": [-2, "a"]}, "user 1, 'tags': expected strings, .*, found int -2"),
        ({"age": 1}, "user 1, 'income': expected a number, found nothing"),
        ({**AGED, "age": "1"}, "user 1, 'age': expected a number, found str '1'"),
        ({**AGED, "age": True}, "user 1, 'age': expected a number, found bool True"),
        ({**AGED, "age": float("nan")}, "user 1, 'age': expected a finite float32, found nan"),
        ({**AGED, "age": 1e39}, r"user 1, 'age': expected a finite float32, found 1e\+39"),
        ([1, 2], "user 1: expected a mapping of features, found list"),
    ],
)
def test_a_bad_user_is_refused_with_its_index_and_feature(user, message):
    with pytest.raises(InputError, match=message):
        pack_users(SCHEMA, [AGED, user])


def test_a_bad_exclude_list_is_refused():
    with pytest.raises(InputError, match="expected one list of item ids per user, 2, found 1"):
        pack_users(SCHEMA, [AGED, AGED], [[1]])
    for exclude in (5, (items for items in [[1], [2]])):
        with pytest.raises(InputError, match="expected one list of item ids per user, 2, found"):
            pack_users(SCHEMA, [AGED, AGED], exclude)
    with pytest.raises(InputError, match="user 1, 'exclude': expected an int64 id, found str"):
        pack_users(SCHEMA, [AGED, AGED], [[1], ["x"]])


def test_excluded_items_may_be_a_set_or_none():
    wire = pack_users(SCHEMA, [AGED] * 4, [{1, 2}, None, frozenset([3]), {4: "x"}.keys()])
    assert wire.lengths[:, -1].tolist() == [2, 0, 1, 1]
    assert [set(ids) - {-1} for ids in wire.ids.tolist()] == [{1, 2}, set(), {3}, {4}]
    hashed = dataclasses.replace(SCHEMA, hashed_items=True)
    assert pack_users(hashed, [AGED], [{"a"}]).ids.tolist() == [[hash_key("a")]]
    for exclude in ([{"x"}], [{1.5}]):
        with pytest.raises(InputError, match="user 0, 'exclude': expected an int64 id, found"):
            pack_users(SCHEMA, [AGED], exclude)


def test_none_is_an_absent_feature():
    none = dict.fromkeys(("user_id", "history", "tags"))
    wire = pack_users(SCHEMA, [{**AGED, **none}, {**AGED, "history": [7]}])
    assert wire.lengths.tolist() == [[0, 0, 0, 0], [0, 1, 0, 0]]
    assert wire.ids.tolist() == [[-1], [7]]


def test_string_keys_of_items_are_hashed_where_the_schema_says_so():
    schema = Schema("test", (Feature("user_id", 1),), (), 1, 1, 1, 1, hashed_items=True)
    wire = pack_users(schema, [{"user_id": 7}, {}], [["a", 5], []])
    assert wire.ids.tolist() == [[7, hash_key("a"), 5], [-1, -1, -1]]
    assert wire.lengths.tolist() == [[1, 2], [0, 0]]
    with pytest.raises(InputError, match="'exclude': expected an int64 id, found str 'a'"):
        pack_users(dataclasses.replace(schema, hashed_items=False), [{}], [["a"]])


def test_string_keys_of_candidates_are_hashed_where_the_schema_says_so():
    schema = Schema("test", (Feature("user_id", 1),), (), 1, 2, 2, 2, hashed_items=True)
    served = Served(schema, max_batch_size=4)
    request = rank_request(served, {"user_id": 7}, [["a", 5]], [[0.5, 0.25]], None)
    (candidates,) = (i for i in request.inputs if i.name() == "candidates")
    sent = np.frombuffer(candidates._get_content(), np.int64)
    assert sent.tolist() == [hash_key("a"), 5]
    with pytest.raises(
        InputError, match=r"\[candidates\] user 0: expected an int64 id, found float"
    ):
        rank_request(served, {"user_id": 7}, [[1.5, 5]], [[0.5, 0.25]], None)
    plain = Served(dataclasses.replace(schema, hashed_items=False), 4)
    with pytest.raises(InputError, match=r"\[candidates\] user 0: expected an int64 id, found str"):
        rank_request(plain, {"user_id": 7}, [["a", "b"]], [[0.5, 0.25]], None)


def test_an_empty_batch_is_refused():
    with pytest.raises(InputError, match="expected at least one user"):
        pack_users(SCHEMA, [])


@pytest.mark.parametrize("users", [None, 5, {"user_id": 1}, (user for user in [AGED])])
def test_what_is_no_batch_is_refused(users):
    with pytest.raises(InputError, match=r"\[users\] expected a sequence of users, found \w+$"):
        pack_users(SCHEMA, users)


MEANS = dataclasses.replace(SCHEMA, dense_defaults={"age": 30.5})


@pytest.mark.parametrize("user", [{"income": 2.5}, {"income": 2.5, "age": None}])
def test_an_unknown_dense_feature_is_its_default(user):
    assert pack_users(MEANS, [user, AGED]).dense.tolist() == [[30.5, 2.5], [1, 2.5]]


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ({"age": 1}, "'income': expected a number, found nothing"),
        ({"age": 1, "income": None}, "'income': expected a number, found NoneType None"),
        ({**AGED, "age": float("nan")}, "'age': expected a finite float32, found nan"),
        ({**AGED, "age": "1"}, "'age': expected a number, found str '1'"),
    ],
)
def test_a_default_hides_no_error(user, message):
    with pytest.raises(InputError, match=message):
        pack_users(MEANS, [user])


def test_dense_values_for_a_model_without_dense_features_are_refused():
    schema = dataclasses.replace(SCHEMA, dense_features=())
    wire = pack_users(schema, [{"user_id": 7}])
    check_wire(schema, wire)
    with pytest.raises(InputError, match=r"dense: expected None, .* found float32 \[1, 2\]"):
        check_wire(schema, dataclasses.replace(wire, dense=np.zeros((1, 2), np.float32)))


def test_arrays_that_are_right_are_not_copied():
    wire = pack_users(SCHEMA, [AGED])
    assert _request._pack(Served(SCHEMA, 4), wire, None) is wire
    items, scores = np.zeros((1, 2), np.int64), np.zeros((1, 2), np.float32)
    assert _request._candidates(SCHEMA, items, 1) is items
    assert _request._candidate_scores(scores, items) is scores


def test_one_item_per_user_in_the_place_of_lists_is_refused():
    # Two items for two users would otherwise be taken for one item each.
    users = [{"age": 1, "income": 1}] * 2
    with pytest.raises(InputError, match=r"\[exclude\] user 0: expected a list of item ids, found"):
        pack_users(SCHEMA, users, [5, 6])
    with pytest.raises(InputError, match=r"\[exclude\] user 0: expected a list of item ids, found"):
        pack_users(SCHEMA, users, np.array([5, 6]))
