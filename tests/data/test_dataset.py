import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recengine.data import FeatureTable, Ragged
from recengine.errors import InputError


@given(st.lists(st.lists(st.integers(0, 9), max_size=6)), st.integers(1, 4))
def test_padded_keeps_the_last_values_at_the_right(lists, width):
    expected = [([-1] * width + values)[-width:] for values in lists]
    assert Ragged.of(lists).padded(width, -1).tolist() == expected


def test_find_refuses_an_unknown_id():
    table = FeatureTable(np.array([3, 5]))
    assert table.find(np.array([5, 3])).tolist() == [1, 0]
    for unknown in (-1, 4, 6):
        with pytest.raises(InputError, match=f"id {unknown} is not in the table"):
            table.find(np.array([3, unknown]))
