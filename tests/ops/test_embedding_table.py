from pathlib import Path

import numpy as np
import pytest

from recengine import ops
from recengine.errors import InputError


class OnlyDlpack:
    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class OnAnotherDevice(OnlyDlpack):
    def __dlpack__(self, **options):
        raise BufferError("the array is on a GPU")


def test_int8_rows_are_within_half_a_step_of_the_values():
    values = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    values[3] = 0
    table = ops.EmbeddingTable.from_array(values, "int8")
    assert table.row_type == "int8"
    assert np.all(np.abs(table.to_array() - values) <= table.scales[:, None] * 0.5001)
    assert table.scales[3] == 0
    assert np.abs(table.data).max() == 127


def test_tiny_values_quantise_without_a_division_by_zero():
    codes, scales = ops.quantize_rows(np.full((1, 4), 1e-45, np.float32))
    assert np.isfinite(scales).all()
    assert np.abs(codes).max() <= 127


def test_arrays_are_borrowed():
    values = np.ones((2, 4), np.float32)
    assert np.shares_memory(ops.EmbeddingTable(values).data, values)


def test_dlpack_arrays_are_taken_without_a_copy():
    values = np.ones((2, 4), np.float32)
    assert np.shares_memory(ops.EmbeddingTable(OnlyDlpack(values)).data, values)
    with pytest.raises(InputError, match="expected an array on the CPU"):
        ops.EmbeddingTable(OnAnotherDevice(values))


@pytest.mark.parametrize("order", ["transposed", "byte-swapped"])
def test_other_layouts_are_converted_or_refused(order):
    values = np.arange(8, dtype=np.float32).reshape(2, 4)
    if order == "transposed":
        assert (ops.EmbeddingTable(values.T).data == values.T).all()
    else:
        with pytest.raises(InputError, match="expected native"):
            ops.EmbeddingTable(values.astype(">f4"))


@pytest.mark.parametrize(
    ("data", "scales", "message"),
    [
        (np.ones((2, 2), np.int8), None, "one per int8 row, found none"),
        (np.ones((2, 2), np.float32), np.ones(2), "expected none, found some"),
        (np.ones((2, 2), np.int8), np.ones(3), "expected 2, found 3"),
        (np.ones((2, 2)), None, "found float64"),
        (np.ones(2, np.float32), None, "expected rank 2, found 1"),
        (np.ones((2, 0), np.float32), None, "dim >= 1"),
    ],
)
def test_data_and_scales_that_do_not_fit_are_refused(data, scales, message):
    with pytest.raises(InputError, match=message):
        ops.EmbeddingTable(data, scales)


@pytest.mark.parametrize("layout", ["tbe", "rowwise"])
@pytest.mark.parametrize(("row_type", "steps"), [("int8", 255), ("int4", 15)])
@pytest.mark.parametrize("dim", [1, 15, 64])
def test_fused_rows_are_within_half_a_step_of_the_values(layout, row_type, steps, dim):
    values = np.random.default_rng(0).standard_normal((40, dim)).astype(np.float32)
    values[3], values[4] = 0, -5
    rows = ops.fuse_rows(values, row_type, layout)
    table = ops.EmbeddingTable.from_fused(rows, dim, row_type, layout)
    assert (table.row_type, table.rows, table.dim, table.scales) == (row_type, 40, dim, None)
    spread = np.ptp(values, axis=1, keepdims=True)
    # A bias in fp16 is up to 2^-10 of the lowest value below it, and so is the scale above.
    step = (spread + np.abs(values).max(axis=1, keepdims=True) * 2**-9) / steps * (1 + 2**-9)
    assert np.all(np.abs(table.to_array() - values) <= step / 2 + 1e-6)
    assert np.all(table.to_array()[3] == 0)


@pytest.mark.parametrize("row_type", ["fp32", "fp16", "bf16", "int8", "int4"])
def test_a_table_without_rows_is_one(row_type):
    table = ops.EmbeddingTable.from_array(np.empty((0, 5), np.float32), row_type)
    assert (table.rows, table.dim, table.to_array().shape) == (0, 5, (0, 5))
    with pytest.raises(InputError):
        ops.EmbeddingTable.from_array(np.empty((3, 0), np.float32), row_type)


def test_fused_rows_are_read_as_the_peers_write_them():
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).standard_normal((9, 24)).astype(np.float32)
    for row_type, pack, unpack in (
        ("int8", "embedding_bag_byte_prepack", "embedding_bag_byte_unpack"),
        ("int4", "embedding_bag_4bit_prepack", "embedding_bag_4bit_unpack"),
    ):
        packed = getattr(torch.ops.quantized, pack)(torch.from_numpy(values))
        expected = getattr(torch.ops.quantized, unpack)(packed).numpy()
        table = ops.EmbeddingTable.from_fused(packed.numpy(), 24, row_type, "rowwise")
        np.testing.assert_allclose(table.to_array(), expected, rtol=0, atol=1e-6)
        found = ops.embedding_bag([table], [3, 7], [[2]], pooling="sum")
        np.testing.assert_allclose(found[0], expected[3] + expected[7], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("data", "dim", "row_type", "layout", "message"),
    [
        (
            np.zeros((2, 11), np.uint8),
            8,
            "int8",
            "tbe",
            "at least 12 bytes a row for dim 8, found 11",
        ),
        (np.zeros((2, 15), np.uint8), 8, "int8", "rowwise", "at least 16 bytes"),
        (np.zeros((2, 8), np.uint8), 9, "int4", "tbe", "at least 9 bytes"),
        (np.zeros((2, 12), np.uint8), 0, "int8", "tbe", "dim: expected at least 1, found 0"),
        (np.zeros(12, np.uint8), 8, "int8", "tbe", "expected rank 2, found 1"),
        (np.zeros((2, 12), np.int8), 8, "int8", "tbe", ""),
        (np.full((2, 12), 0xFF, np.uint8), 8, "int8", "tbe", "scale and bias: row 0"),
        (np.zeros((2, 12), np.uint8), 8, "fp16", "tbe", "expected int8 or int4, found 'fp16'"),
        (np.zeros((2, 12), np.uint8), 8, "int8", "last", "expected tbe or rowwise, found 'last'"),
    ],
)
def test_fused_rows_that_cannot_be_read_are_refused(data, dim, row_type, layout, message):
    if not message:
        assert ops.EmbeddingTable.from_fused(data, dim, row_type, layout).rows == 2
        return
    with pytest.raises(InputError, match=message):
        ops.EmbeddingTable.from_fused(data, dim, row_type, layout)


def test_bfloat16_rounds_to_nearest_even():
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).standard_normal((30, 7)).astype(np.float32)
    values[0] = [0, -0.0, 1, 1 + 2**-8, 1 + 3 * 2**-8, 1e-40, -1e38]
    table = ops.EmbeddingTable.from_array(values, "bf16")
    expected = torch.from_numpy(values).bfloat16()
    np.testing.assert_array_equal(table.to_array(), expected.float().numpy())
    assert ops.EmbeddingTable(expected.view(torch.uint16)).row_type == "bf16"


@pytest.mark.parametrize("row_type", ["fp32", "fp16", "bf16", "int8", "int4"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_row(row_type, value):
    values = np.ones((3, 4))
    values[2, 1] = value
    with pytest.raises(InputError, match="row 2"):
        ops.EmbeddingTable.from_array(values, row_type)


def test_values_beyond_fp16_and_unknown_row_types_are_refused():
    with pytest.raises(InputError, match="as fp16: row 0"):
        ops.EmbeddingTable.from_array([[7e4]], "fp16")
    with pytest.raises(InputError, match="as bf16: row 0"):
        ops.EmbeddingTable.from_array([[3.4e38]], "bf16")
    with pytest.raises(InputError, match="fp32, fp16, bf16, int8 or int4, found 'int2'"):
        ops.EmbeddingTable.from_array([[1.0]], "int2")


@pytest.mark.parametrize("stored", ["fp32", "fp16", "bf16", "int8", "int4", "fused"])
def test_a_table_in_huge_pages_has_the_same_rows(stored):
    values = np.random.default_rng(5).standard_normal((10_000, 64)).astype(np.float32)
    if stored == "fused":
        rows = np.pad(ops.fuse_rows(values, "int8", "rowwise"), ((0, 0), (0, 5)))
        table = ops.EmbeddingTable.from_fused(rows, 64, "int8", "rowwise", name="t")
    else:
        table = ops.EmbeddingTable.from_array(values, stored, name="t")
    copy = table.in_huge_pages()
    assert not np.shares_memory(copy.data, table.data)
    assert copy.data.ctypes.data % 64 == 0
    assert (copy.name, copy.row_type, copy.dim) == ("t", table.row_type, 64)
    np.testing.assert_array_equal(copy.data, table.data)
    np.testing.assert_array_equal(copy.to_array(), table.to_array())
    assert 0 <= copy.huge_page_bytes <= copy.data.nbytes


def test_huge_pages_are_counted(tmp_path):
    rows = np.zeros((100_000, 64), np.float32)
    (tmp_path / "rows").write_bytes(rows)
    mapped = ops.EmbeddingTable(np.memmap(tmp_path / "rows", np.float32, "r", shape=rows.shape))
    assert mapped.huge_page_bytes == 0
    mode = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not mode.exists() or "[never]" in mode.read_text():
        pytest.skip("this system gives no huge pages")
    assert mapped.in_huge_pages().huge_page_bytes > 0
