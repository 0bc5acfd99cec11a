"""What embedding_bag does on a GPU alone; the rest is in test_embedding_bag.py."""

import numpy as np
import pytest
from places import Gpu, pool_on_gpu
from test_embedding_bag import FUSED, ROW_TYPES, assert_right, make_rows, make_table

from recengine import ops
from recengine.errors import InputError

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("columns", [1, 47, 48, 100, 380, 381])
def test_any_number_of_columns(columns):
    rng = np.random.default_rng(columns)
    types = [*ROW_TYPES, *FUSED]
    tables = [
        make_table(rng, types[c % len(types)], 20, int(rng.integers(1, 80))) for c in range(columns)
    ]
    lengths = rng.integers(0, 4, (3, columns)).astype(np.int32)
    rows = make_rows(rng, tables, lengths)
    found = Gpu().embedding_bag(tables, rows, lengths, pooling="sum")
    assert_right(None, found, (tables, rows, lengths, ["sum"] * columns, None, [0] * columns))


@pytest.mark.parametrize(
    ("batch", "length"),
    [(1, 1), (1, 15), (1, 17), (1, 100), (1, 1000), (3, 33), (3, 1000), (400, 1), (400, 17)],
)
@pytest.mark.parametrize("row_type", [*ROW_TYPES, ("int8", "rowwise")])
def test_bags_that_several_warps_share(batch, length, row_type):
    """Mean lengths choose how many lanes and warps take a bag."""
    rng = np.random.default_rng(length)
    tables = [make_table(rng, row_type, 100, dim) for dim in (64, 5)]
    lengths = np.full((batch, 2), length, np.int32)
    lengths[0, 1] = 0
    rows = make_rows(rng, tables, lengths)
    weights = rng.standard_normal(rows.size).astype(np.float32)
    found = Gpu().embedding_bag(tables, rows, lengths, pooling="mean", weights=weights)
    assert_right(None, found, (tables, rows, lengths, ["mean"] * 2, weights, [0] * 2))


@pytest.mark.parametrize("hint", [0, 1, 5, 100])
def test_the_longest_bag_is_a_hint(hint):
    rng = np.random.default_rng(0)
    tables = [make_table(rng, "fp16", 40, 32) for _ in range(3)]
    lengths = np.array([[1, 60, 5], [1, 0, 5], [0, 70, 5]], np.int32)
    rows = make_rows(rng, tables, lengths)
    found = Gpu().embedding_bag(tables, rows, lengths, pooling="sum", max_length=[1, 100, hint])
    assert_right(None, found, (tables, rows, lengths, ["sum"] * 3, None, [0] * 3))


@pytest.mark.parametrize("row_type", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("dim", [7, 16, 130])
def test_rows_that_are_on_the_gpu_already(row_type, dim):
    rng = np.random.default_rng(dim)
    table = make_table(rng, row_type, 30, dim)
    scales = None if table.scales is None else ops.to_device(table.scales)
    borrowed = ops.DeviceTable.from_array(ops.to_device(table.data), scales)
    assert (borrowed.rows, borrowed.dim, borrowed.device) == (30, dim, 0)
    assert_pools(rng, borrowed, table)


@pytest.mark.parametrize(("row_type", "layout"), FUSED)
@pytest.mark.parametrize("dim", [7, 16, 130])
def test_fused_rows_that_are_on_the_gpu_already(row_type, layout, dim):
    rng = np.random.default_rng(dim)
    table = make_table(rng, (row_type, layout), 30, dim)
    data = ops.to_device(table.data)
    assert_pools(rng, ops.DeviceTable.from_fused(data, dim, row_type, layout), table)


def assert_pools(rng, on_gpu, table):
    lengths = np.array([[3], [0], [40]], np.int32)
    rows = make_rows(rng, [table], lengths)
    found = pool_on_gpu([on_gpu], rows, lengths, pooling="sum")
    assert_right(None, found, ([table], rows, lengths, ["sum"], None, [0]))


def test_the_result_goes_to_out():
    table = ops.DeviceTable(ops.EmbeddingTable(np.ones((4, 4), np.float32)))
    out = ops.to_device(np.full((2, 4), 7, np.float32))
    rows, lengths = ops.to_device(np.array([0, 1])), ops.to_device(np.array([[2], [0]], np.int32))
    assert ops.embedding_bag([table], rows, lengths, pooling="sum", out=out) is out
    assert out.numpy().tolist() == [[2] * 4, [0] * 4]


@pytest.mark.parametrize("row_type", [*ROW_TYPES, *FUSED])
def test_without_a_check_values_out_of_range_read_nothing(row_type):
    rng = np.random.default_rng(0)
    table = ops.DeviceTable(make_table(rng, row_type, 5, 24))
    for rows, lengths in [
        ([5, -1, 2**63 - 1, -(2**63)], [[4]]),
        ([0, 1], [[2**31 - 1]]),
        ([0, 1], [[-(2**31)]]),
        ([0, 1], [[2**31 - 1]] * 300 + [[-5]] * 300),
        ([], [[3]] * 300),
    ]:
        found = pool_on_gpu([table], rows, lengths, pooling="sum", check=False)
        assert found.shape == (len(lengths), 24)


def test_a_bad_row_of_a_call_with_computed_starts_is_named():
    table = ops.DeviceTable(ops.EmbeddingTable(np.ones((9, 4), np.float32), name="t"))
    rows = np.zeros(5000, np.int64)
    rows[3777] = 9
    lengths = np.full((1000, 1), 5, np.int32)
    with pytest.raises(InputError, match=r'table "t": rows\[3777\]: expected 0 to 8, found 9'):
        ops.embedding_bag([table], ops.to_device(rows), ops.to_device(lengths), pooling="sum")


def test_arguments_that_do_not_fit_are_named():
    host = ops.EmbeddingTable(np.ones((4, 4), np.float32))
    table = ops.DeviceTable(host)
    rows, lengths = ops.to_device(np.array([0])), ops.to_device(np.array([[1]], np.int32))
    with pytest.raises(InputError, match="lengths: expected an array on cuda:0, found one on the"):
        ops.embedding_bag([table], rows, np.array([[1]], np.int32), pooling="sum")
    with pytest.raises(InputError, match=r"tables: expected DeviceTables.*found EmbeddingTable"):
        ops.embedding_bag([host], rows, lengths, pooling="sum")
    with pytest.raises(InputError, match="rows: expected <i8, found <i4"):
        ops.embedding_bag([table], lengths, lengths, pooling="sum")
    out = ops.to_device(np.empty((1, 3), np.float32))
    with pytest.raises(InputError, match=r"out: expected float32 \[1, 4\], found \(1, 3\)"):
        ops.embedding_bag([table], rows, lengths, pooling="sum", out=out)
    with pytest.raises(InputError, match="data: expected an array on a GPU"):
        ops.DeviceTable.from_array(host.data)
    read = ops.to_device(host.data[:1])
    table = ops.DeviceTable.from_array(read, name="t")
    with pytest.raises(InputError, match=r'out: expected memory of its own, found .* "t"'):
        ops.embedding_bag([table], rows, lengths, pooling="sum", out=read)


def test_rows_on_the_gpu_that_are_no_table_are_refused():
    codes = ops.to_device(np.zeros((3, 8), np.int8))
    with pytest.raises(InputError, match="scales: expected one per int8 row"):
        ops.DeviceTable.from_array(codes)
    with pytest.raises(InputError, match="scales: expected 3, found 2"):
        ops.DeviceTable.from_array(codes, ops.to_device(np.ones(2, np.float32)))
    with pytest.raises(InputError, match=r"data: expected float32, float16, .* found <i8"):
        ops.DeviceTable.from_array(ops.to_device(np.zeros((3, 8), np.int64)))
    with pytest.raises(InputError, match="expected at least 12 bytes a row for dim 8, found 10"):
        ops.DeviceTable.from_fused(ops.to_device(np.zeros((3, 10), np.uint8)), 8, "int8")


@pytest.mark.alone
@pytest.mark.parametrize("cache_bytes", [None, 1 << 20])
def test_rows_beyond_4_gib(cache_bytes):
    first_beyond = (4 << 30) // 64
    data = np.zeros((first_beyond + 3, 32), np.float16)
    rows = np.array([0, 1, first_beyond // 2, first_beyond - 1, first_beyond, first_beyond + 2])
    data[rows] = np.random.default_rng(0).standard_normal((len(rows), 32))
    table = ops.DeviceTable(ops.EmbeddingTable(data), cache_bytes=cache_bytes)
    found = pool_on_gpu([table], rows, np.ones((len(rows), 1)), pooling="sum")
    np.testing.assert_array_equal(found, data[rows])
