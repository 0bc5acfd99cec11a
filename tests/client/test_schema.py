import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recengine.client import Feature, Schema
from recengine.errors import InputError

SIZE = st.integers(1, 2**40)
SCHEMAS = st.builds(
    Schema,
    name=st.text(),
    features=st.lists(st.builds(Feature, st.text(), SIZE, st.booleans())).map(tuple),
    dense_features=st.lists(st.text()).map(tuple),
    num_items=SIZE,
    num_candidates=SIZE,
    max_candidates=SIZE,
    k=SIZE,
    dense_defaults=st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
)


@given(SCHEMAS)
def test_a_schema_survives_json(schema):
    assert Schema.from_json(schema.to_json()) == schema


def test_unknown_fields_are_ignored():
    schema = Schema("test", (Feature("user_id", 1),), (), 1, 1, 1, 1)
    raw = json.loads(schema.to_json()) | {"from_the_future": 1}
    assert Schema.from_json(json.dumps(raw)) == schema


def test_without_defaults_the_json_is_as_it_was():
    schema = Schema("test", (Feature("user_id", 1),), ("age",), 1, 1, 1, 1)
    assert "dense_defaults" not in json.loads(schema.to_json())
    assert Schema.from_json(schema.to_json()).dense_defaults == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": "10"}, "k: expected int, found '10'"),
        ({"k": True}, "k: expected int, found True"),
        ({"features": [{"name": "x"}]}, "max_length: expected int, found nothing"),
        ({"dense_defaults": [1]}, "dense_defaults: expected dict, found"),
        (
            {"dense_defaults": {"age": "1"}},
            "dense_defaults: 'age': expected a finite number, found",
        ),
        ({"dense_defaults": {"age": float("nan")}}, "'age': expected a finite number, found nan"),
        ({"features": ["x"]}, "features: expected JSON objects, found str"),
    ],
)
def test_a_bad_field_is_named(change, message):
    raw = json.loads(Schema("test", (), (), 1, 1, 1, 1).to_json()) | change
    with pytest.raises(InputError, match=message):
        Schema.from_json(json.dumps(raw))


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_what_is_not_a_json_object_is_refused(text):
    with pytest.raises(InputError, match="schema"):
        Schema.from_json(text)
