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


@pytest.mark.parametrize("row_type", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_row(row_type, value):
    values = np.ones((3, 4))
    values[2, 1] = value
    with pytest.raises(InputError, match="row 2"):
        ops.EmbeddingTable.from_array(values, row_type)


def test_values_beyond_fp16_and_unknown_row_types_are_refused():
    with pytest.raises(InputError, match="as fp16: row 0"):
        ops.EmbeddingTable.from_array([[7e4]], "fp16")
    with pytest.raises(InputError, match="expected fp32, fp16 or int8, found 'int2'"):
        ops.EmbeddingTable.from_array([[1.0]], "int2")
