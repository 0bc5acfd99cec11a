import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from recengine.bundle import Bag
from recengine.data import Ragged
from recengine.models.bags import PADDING, TableShape, make_tables, pool, pool_bags

ROWS, DIM = 7, 3
lists = st.lists(st.lists(st.integers(0, ROWS - 1), max_size=6), min_size=1, max_size=5)


def pooled(weight, rows, pooling):
    """The meaning of an embedding bag: row 0 counts like any other, nothing gives zeros."""
    if not len(rows):
        return np.zeros(weight.shape[1])
    return getattr(weight[rows], pooling)(0)


@given(lists, st.sampled_from(["sum", "mean"]))
def test_pool_is_the_sum_or_mean_of_rows_with_zeros_for_empty_lists(lists, pooling):
    weight = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
    rows = torch.from_numpy(Ragged.of(lists).padded(6, PADDING))
    found = pool(torch.from_numpy(weight), rows, pooling)
    expected = [pooled(weight, values, pooling) for values in lists]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@given(lists)
def test_one_feature_feeds_bags_of_different_lengths(lists):
    tables = make_tables({"t": TableShape(rows=ROWS, dim=DIM)})
    bags = [Bag(feature="f", table="t", pooling="mean", max_length=length) for length in (2, 4)]
    rows = {"f": torch.from_numpy(Ragged.of(lists).padded(6, PADDING))}
    found = pool_bags(tables, bags, rows).detach()
    weight = tables["t"].detach().numpy()
    expected = [
        np.concatenate([pooled(weight, values[-length:], "mean") for length in (2, 4)])
        for values in lists
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)
