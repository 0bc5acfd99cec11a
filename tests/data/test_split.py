from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recengine.data import (
    Dataset,
    FeatureTable,
    Interactions,
    leave_last_out,
    splitter,
    time_ratio,
)
from recengine.errors import InputError

rows = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 12)), min_size=1, max_size=60
)


def dataset_of(rows):
    users, items, times = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    order = np.argsort(times, kind="stable")
    interactions = Interactions(users[order], items[order], times[order])
    return Dataset("d", interactions, *(FeatureTable(np.unique(ids)) for ids in (users, items)))


def parts(split):
    return [split.train, split.validation, split.test]


@given(rows)
def test_a_history_is_what_the_user_took_before_the_target(rows):
    split = leave_last_out(dataset_of(rows))
    positions = np.arange(len(rows))
    interactions = split.dataset.interactions
    for position, past in zip(positions, split.history(positions), strict=True):
        mine = interactions.users == split.dataset.users.ids[split.user_idx[position]]
        taken = split.dataset.items.find(interactions.items[mine])
        place = position - split.starts[position]
        assert past.tolist() == taken[:place].tolist()
        assert split.item_idx[position] == taken[place]
        assert (split.times[split.starts[position] : position] <= split.times[position]).all()


@given(rows)
def test_leave_last_out_takes_the_two_last_of_each_user(rows):
    split = leave_last_out(dataset_of(rows))
    for user in np.unique(split.user_idx):
        mine = np.flatnonzero(split.user_idx == user)
        train, validation, test = (np.intersect1d(part, mine).tolist() for part in parts(split))
        if len(mine) < 3:
            assert (train, validation, test) == (mine.tolist(), [], [])
            continue
        assert train == mine[:-2].tolist()
        # A target that the user had before is not asked for.
        assert validation in ([mine[-2]], [])
        assert test in ([mine[-1]], [])
        assert (test == []) == (split.item_idx[mine[-1]] in split.item_idx[mine[:-1]])


@given(rows, st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.0, 0.5, 0.5)]))
def test_time_ratio_keeps_train_before_validation_before_test(rows, ratios):
    split = time_ratio(dataset_of(rows), ratios)
    present = [part for part in parts(split) if len(part)]
    for earlier, later in pairwise(present):
        assert split.times[earlier].max() < split.times[later].min()
    assert len(split.train) <= ratios[0] * len(rows) + 0.5


def test_time_ratio_cuts_by_count_when_all_times_differ():
    split = time_ratio(dataset_of([(i % 3, i, i) for i in range(20)]))
    assert [len(part) for part in parts(split)] == [16, 2, 2]


@pytest.mark.parametrize("ratios", [(0.5, 0.5), (0.9, 0.2, 0.1), (1.1, -0.1, 0)])
def test_ratios_that_are_no_shares_are_refused(ratios):
    with pytest.raises(InputError, match="expected three shares that sum to 1"):
        time_ratio(dataset_of([(0, 0, 0)]), ratios)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("leave-last-out", leave_last_out),
        ("time-ratio:0.6,0.2,0.2", lambda dataset: time_ratio(dataset, (0.6, 0.2, 0.2))),
    ],
)
def test_a_split_is_found_by_its_name_and_tells_it(name, split):
    dataset = dataset_of([(i % 3, i, i) for i in range(20)])
    named, expected = splitter(name)(dataset), split(dataset)
    assert named.name == expected.name == name
    for part, other in zip(parts(named), parts(expected), strict=True):
        np.testing.assert_array_equal(part, other)


@pytest.mark.parametrize(
    "name", ["", "random", "0.8,0.1,0.1", "time-ratio", "time-ratio:", "time-ratio:0.8,0.1,0.2"]
)
def test_a_name_of_no_split_is_refused(name):
    with pytest.raises(InputError, match="expected leave-last-out, or time-ratio:"):
        splitter(name)


def test_the_name_of_a_split_by_time_says_its_shares_exactly():
    dataset = dataset_of([(i % 3, i, i) for i in range(20)])
    split = time_ratio(dataset, (1 / 3, 1 / 3, 1 / 3))
    assert splitter(split.name)(dataset).name == split.name
