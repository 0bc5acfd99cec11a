import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import Cpu

from bench.compiler import compile_cpp
from bench.ops.checked_ids import KERNELS
from recengine import ops
from recengine.errors import DeviceError, InputError

ROW_TYPES = ["fp32", "fp16", "bf16", "int8", "int4"]
FUSED = [("int8", "tbe"), ("int8", "rowwise"), ("int4", "tbe"), ("int4", "rowwise")]


def fused_parts(table, bag):
    """Codes, scales and biases of fused rows, read byte by byte."""
    half = table._layout == "tbe" or table.row_type == "int4"
    bytes_of_codes = table.dim if table.row_type == "int8" else (table.dim + 1) // 2
    first, at = (4, 0) if table._layout == "tbe" else (0, bytes_of_codes)
    raw = table.data[bag]
    codes = raw[:, first : first + bytes_of_codes]
    if table.row_type == "int4":
        codes = np.stack([codes & 15, codes >> 4], axis=2).reshape(len(raw), 2 * bytes_of_codes)
    parts = np.ascontiguousarray(raw[:, at : at + (4 if half else 8)])
    scales, biases = parts.view("<f2" if half else "<f4").astype(np.float32).T
    return codes[:, : table.dim].astype(np.float32), scales, biases


def stored_parts(table, bag):
    if table._layout is not None:
        return fused_parts(table, bag)
    if table.row_type == "bf16":
        values = (table.data[bag].astype(np.uint32) << 16).view(np.float32)
    else:
        values = table.data[bag].astype(np.float32)
    factors = np.ones(len(bag), np.float32) if table.scales is None else table.scales[bag]
    return values, factors, None


def reference(tables, rows, lengths, poolings, weights, max_lengths):
    """Bag by bag, row by row, each operation rounded to fp32: the op equals it to the bit."""
    users, position = [], 0
    for user in lengths:
        parts = []
        for table, length, pooling, longest in zip(
            tables, user, poolings, max_lengths, strict=True
        ):
            bag = rows[position : position + length]
            values, factors, biases = stored_parts(table, bag)
            if weights is not None:
                factors = factors * weights[position : position + length]
                biases = None if biases is None else biases * weights[position : position + length]
            values = values * factors[:, None]
            if pooling == "none":
                part = np.zeros((longest, table.dim), np.float32)
                part[:length] = values if biases is None else values + biases[:, None]
            else:
                part = np.zeros(table.dim, np.float32)
                for value in values:
                    part = part + value
                if biases is not None:
                    total = np.float32(0)
                    for bias in biases:
                        total = total + bias
                    part = part + total
                if pooling == "mean" and length > 0:
                    part = part / np.float32(length)
            parts.append(part.reshape(-1))
            position += length
        users.append(np.concatenate(parts))
    return np.stack(users)


def exact(tables, rows, lengths, poolings, weights, max_lengths):
    """The result in fp64, and how far sums of fp32 in any order may be from it: of n rows,
    (n + 4) 2^-24 of the sum of the magnitudes."""
    values, tolerances = [], []
    position = 0
    for user in lengths:
        for table, length, pooling, longest in zip(
            tables, user, poolings, max_lengths, strict=True
        ):
            bag = slice(position, position + length)
            codes, factors, biases = (
                None if part is None else part.astype(np.float64)
                for part in stored_parts(table, rows[bag])
            )
            weight = np.ones(length) if weights is None else weights[bag].astype(np.float64)
            products = codes * (factors * weight)[:, None]
            offsets = np.zeros(length) if biases is None else biases * weight
            parts = products + offsets[:, None], np.abs(products) + np.abs(offsets)[:, None]
            if pooling == "none":
                parts = [np.pad(part, ((0, longest - length), (0, 0))) for part in parts]
            else:
                parts = [part.sum(axis=0) for part in parts]
            if pooling == "mean":
                parts = [part / max(1, length) for part in parts]
            values.append(parts[0].reshape(-1))
            tolerances.append((length + 4) * 2.0**-24 * parts[1].reshape(-1))
            position += length
    shape = (len(lengths), -1)
    return np.concatenate(values).reshape(shape), np.concatenate(tolerances).reshape(shape)


def assert_right(place, found, call):
    """As far from fp64 as sums in any order may be; equal to the reference to the bit on the CPU,
    and on a GPU where nothing is summed."""
    assert found.dtype == np.float32
    _, _, _, poolings, *_ = call
    if isinstance(place, Cpu) or set(poolings) == {"none"}:
        np.testing.assert_array_equal(found, reference(*call))
    values, tolerances = exact(*call)
    assert found.shape == values.shape
    assert (np.abs(found - values) <= tolerances).all()


def make_table(rng, row_type, rows, dim, name="table"):
    values = rng.standard_normal((rows, dim)).astype(np.float32)
    if isinstance(row_type, str):
        return ops.EmbeddingTable.from_array(values, row_type, name=name)
    data = ops.fuse_rows(values, *row_type)
    padding = rng.integers(0, 256, (rows, int(rng.integers(0, 20))), np.uint8)
    return ops.EmbeddingTable.from_fused(np.hstack([data, padding]), dim, *row_type, name=name)


def make_rows(rng, tables, lengths):
    bags = [
        rng.integers(0, t.rows, n) for user in lengths for t, n in zip(tables, user, strict=True)
    ]
    return np.concatenate([np.empty(0, np.int64), *bags])


@st.composite
def calls(draw):
    """Tables of every row type and width, ragged lengths with zeros; few rows: ids repeat."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    columns = draw(st.integers(1, 4))
    tables = [
        make_table(
            rng,
            draw(st.sampled_from([*ROW_TYPES, *FUSED])),
            draw(st.integers(1, 9)),
            draw(st.integers(1, 300)),
        )
        for _ in range(columns)
    ]
    batch = draw(st.integers(1, 4))
    shape = (batch, columns)
    lengths = np.array(
        draw(st.lists(st.integers(0, 20), min_size=batch * columns, max_size=batch * columns)),
        np.int32,
    ).reshape(shape)
    rows = make_rows(rng, tables, lengths)
    pooling = st.sampled_from(["sum", "mean", "none"])
    poolings = draw(st.lists(pooling, min_size=columns, max_size=columns))
    weights = rng.standard_normal(rows.size).astype(np.float32) if draw(st.booleans()) else None
    return tables, rows, lengths, poolings, weights, [20] * columns


@settings(max_examples=60)
@given(call=calls())
def test_equals_the_reference(place, call):
    tables, rows, lengths, poolings, weights, max_lengths = call
    found = place.embedding_bag(
        tables, rows, lengths, pooling=poolings, weights=weights, max_length=max_lengths
    )
    assert_right(place, found, call)


@pytest.mark.parametrize("row_type", [*ROW_TYPES, *FUSED])
@pytest.mark.parametrize("pooling", ["sum", "mean", "none"])
@pytest.mark.parametrize("dim", [1, 4, 7, 16, 64, 100, 129, 512])
def test_every_row_type_pooling_and_tail(place, row_type, pooling, dim):
    rng = np.random.default_rng(dim)
    tables = [make_table(rng, row_type, 50, dim), make_table(rng, row_type, 7, 16)]
    lengths = np.array([[0, 3], [5, 0], [40, 1]], np.int32)
    rows = make_rows(rng, tables, lengths)
    found = place.embedding_bag(tables, rows, lengths, pooling=pooling, max_length=40)
    assert_right(place, found, (tables, rows, lengths, [pooling] * 2, None, [40] * 2))


@pytest.mark.parametrize("row_type", [*ROW_TYPES, *FUSED])
@pytest.mark.parametrize("pooling", ["sum", "mean", "none"])
def test_bags_longer_than_a_block_and_more_users_than_a_group(place, row_type, pooling):
    rng = np.random.default_rng(2)
    tables = [make_table(rng, row_type, 300, dim) for dim in (8, 300)]
    lengths = rng.integers(0, 3, (530, 2)).astype(np.int32)
    lengths[[0, 255, 256, 529]] = [[700, 1], [0, 900], [399, 400], [1000, 0]]
    rows = make_rows(rng, tables, lengths)
    weights = rng.standard_normal(rows.size).astype(np.float32)
    if pooling == "none":
        lengths, rows, weights = (
            lengths[:2],
            rows[: lengths[:2].sum()],
            weights[: lengths[:2].sum()],
        )
    call = {"pooling": pooling, "weights": weights, "max_length": 1000}
    found = place.embedding_bag(tables, rows, lengths, **call)
    assert_right(place, found, (tables, rows, lengths, [pooling] * 2, weights, [1000] * 2))


@pytest.mark.parametrize("row_type", ROW_TYPES)
def test_short_bags_of_many_users(isa, row_type):
    rng = np.random.default_rng(3)
    tables = [make_table(rng, row_type, 5000, dim) for dim in (64, 20, 200)]
    lengths = rng.integers(0, 3, (1500, 3)).astype(np.int32)
    lengths[700:1100, 1] = 0  # blocks of one column, and of several
    rows = make_rows(rng, tables, lengths)
    weights = rng.standard_normal(rows.size).astype(np.float32)
    for factors in (None, weights):
        found = ops.embedding_bag(tables, rows, lengths, pooling="sum", weights=factors, isa=isa)
        expected = reference(tables, rows, lengths, ["sum"] * 3, factors, [0] * 3)
        np.testing.assert_array_equal(found, expected)


def test_the_result_goes_to_out():
    table = ops.EmbeddingTable(np.ones((4, 4), np.float32), name="t")
    out = np.full((2, 4), 7, np.float32)
    found = ops.embedding_bag([table], [0, 1], [[2], [0]], pooling="sum", out=out)
    assert found is out
    assert out.tolist() == [[2] * 4, [0] * 4]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.empty((2, 3), np.float32), r"expected float32 \[2, 4\], found \(2, 3\)"),
        (np.empty(8, np.float32), r"expected float32 \[2, 4\], found \(8,\)"),
        (np.empty((2, 4)), "expected float32, found float64"),
        ([0.0] * 8, "expected an array, found list"),
        (np.empty((4, 2), np.float32).T, "expected an array in C order"),
        (np.broadcast_to(np.float32(0), (2, 4)), "expected an array in C order"),
        (np.frombuffer(bytes(32), np.float32).reshape(2, 4), "expected an array to write to"),
    ],
)
def test_an_out_that_cannot_take_the_result_is_refused(out, message):
    table = ops.EmbeddingTable(np.ones((4, 4), np.float32))
    with pytest.raises(InputError, match=r"\[embedding_bag\] out: " + message):
        ops.embedding_bag([table], [0, 1], [[2], [0]], pooling="sum", out=out)


def test_the_result_goes_to_an_array_of_another_framework():
    torch = pytest.importorskip("torch")
    table = ops.EmbeddingTable(np.ones((4, 4), np.float32))
    out = torch.full((3, 4), 7.0)
    found = ops.embedding_bag([table], [0, 1], [[2], [0]], pooling="sum", out=out[1:])
    assert found.data_ptr() == out[1:].data_ptr()
    assert out.tolist() == [[7] * 4, [2] * 4, [0] * 4]
    with pytest.raises(InputError, match="out: expected float32, found float64"):
        ops.embedding_bag([table], [0, 1], [[2], [0]], pooling="sum", out=out.double())


def shared(field):
    """Arguments of a call of 2 users, of which one is the memory of `out` [2, 4] as well."""
    data, scales = np.ones((8, 4), np.int8), np.ones(8, np.float32)
    arrays = {
        "data": data,
        "scales": scales,
        "rows": np.zeros(4, np.int64),
        "lengths": np.full((2, 1), 2, np.int32),
        "weights": np.ones(4, np.float32),
    }
    memory = np.zeros(64, np.uint8)
    array = arrays[field]
    view = memory[24 : 24 + array.nbytes].view(array.dtype).reshape(array.shape)
    view[:] = array
    arrays[field] = view
    table = ops.EmbeddingTable(arrays.pop("data"), arrays.pop("scales"), name="t")
    return table, arrays, memory[:32].view(np.float32).reshape(2, 4)


@pytest.mark.parametrize(
    ("field", "found"),
    [
        ("data", 'table "t"'),
        ("scales", 'table "t"'),
        ("rows", "rows"),
        ("lengths", "lengths"),
        ("weights", "weights"),
    ],
)
def test_an_out_that_is_read_as_well_is_refused(field, found):
    table, arrays, out = shared(field)
    with pytest.raises(InputError, match=f"out: expected memory of its own, found that of {found}"):
        ops.embedding_bag([table], **arrays, pooling="sum", out=out)


def test_an_out_beside_what_is_read_is_taken():
    memory = np.ones((4, 4), np.float32)
    table = ops.EmbeddingTable(memory[1:3])
    for out in (memory[:1], memory[3:]):
        ops.embedding_bag([table], [0, 1], [[2]], pooling="sum", out=out)
        assert out.tolist() == [[2] * 4]
    empty = memory[1:1]
    assert ops.embedding_bag([table], [], np.empty((0, 1)), pooling="sum", out=empty) is empty


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_large_calls_are_the_same_on_any_number_of_threads(isa, threads):
    rng = np.random.default_rng(0)
    tables = [make_table(rng, row_type, 1000, 24) for row_type in ROW_TYPES]
    lengths = rng.integers(0, 60, (300, 5)).astype(np.int32)
    lengths[100:110] = 0
    rows = make_rows(rng, tables, lengths)
    found = ops.embedding_bag(tables, rows, lengths, pooling="sum", threads=threads, isa=isa)
    expected = reference(tables, rows, lengths, ["sum"] * 5, None, [0] * 5)
    np.testing.assert_array_equal(found, expected)


# Users whose rows are worth several threads are cut between columns; the last bags are empty.
_MANY_ROWS = [
    [[9000, 9000, 0, 9000, 5000, 0]],
    [[1, 0, 2, 0, 0, 0], [2000, 12_000, 0, 9000, 1, 0], [0, 0, 0, 7, 0, 0]],
    [[3, 20_000, 0, 0, 0, 0], [0, 0, 3000, 9000, 6000, 0]],
]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("lengths", _MANY_ROWS)
def test_users_with_many_rows_are_the_same_on_any_number_of_threads(isa, threads, lengths):
    rng = np.random.default_rng(1)
    row_types = ["fp32", ("int4", "tbe"), "int8", ("int8", "rowwise"), "fp16", ("int8", "tbe")]
    tables = [make_table(rng, row_type, 1000, 24) for row_type in row_types]
    rows = make_rows(rng, tables, lengths)
    weights = rng.standard_normal(rows.size).astype(np.float32)
    poolings = ["sum", "mean", "sum", "sum", "mean", "sum"]
    found = ops.embedding_bag(
        tables, rows, lengths, pooling=poolings, weights=weights, threads=threads, isa=isa
    )
    expected = reference(tables, rows, lengths, poolings, weights, [0] * 6)
    np.testing.assert_array_equal(found, expected)


def test_a_bad_row_of_a_user_with_many_rows_is_named():
    tables = [ops.EmbeddingTable(np.ones((9, 4), np.float32), name=f"t{i}") for i in range(4)]
    rows = np.zeros(80_000, np.int64)
    rows[77_777] = 9
    with pytest.raises(InputError, match=r'table "t3": rows\[77777\].*found 9'):
        ops.embedding_bag(tables, rows, [[20_000] * 4], pooling="sum", threads=4)


def test_every_fp16_value_converts_as_numpy_does(place):
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].reshape(-1, 8)
    table = ops.EmbeddingTable(halves)
    rows = np.arange(table.rows)
    lengths = np.ones((table.rows, 1), np.int32)
    found = place.embedding_bag([table], rows, lengths, pooling="sum")
    np.testing.assert_array_equal(found, halves.astype(np.float32))


def test_an_empty_batch_gives_an_empty_answer(place):
    table = ops.EmbeddingTable(np.ones((2, 3), np.float32))
    found = place.embedding_bag([table], [], np.empty((0, 1), np.int32), pooling="sum")
    assert found.shape == (0, 3)


def test_a_call_of_only_empty_bags_gives_zeros(place):
    table = ops.EmbeddingTable(np.ones((2, 3), np.float32))
    for pooling in ("sum", "mean", "none"):
        found = place.embedding_bag(
            [table], [], np.zeros((2, 1), np.int32), pooling=pooling, max_length=2
        )
        assert found.size > 0
        assert not found.any()


@pytest.mark.parametrize("row", [-1, 5, 2**63 - 1, -(2**63)])
def test_a_row_outside_its_table_is_named(place, row):
    tables = [ops.EmbeddingTable(np.ones((n, 4), np.float32), name=f"t{n}") for n in (9, 5)]
    lengths = np.array([[2, 1], [1, 2]], np.int32)
    rows = np.array([8, 8, 4, 8, 4, row])
    message = rf'table "t5": rows\[5\]: expected 0 to 4, found {row}'
    with pytest.raises(InputError, match=message):
        place.embedding_bag(tables, rows, lengths, pooling="sum")


def test_a_bad_row_of_a_call_on_many_threads_is_an_error():
    table = ops.EmbeddingTable(np.ones((9, 4), np.float32), name="t")
    rows = np.zeros(100_000, np.int64)
    rows[77_777] = 9
    with pytest.raises(InputError, match=r"rows\[77777\].*found 9"):
        ops.embedding_bag([table], rows, np.full((1000, 1), 100), pooling="sum", threads=4)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([[2, -1]], r"lengths\[0, 1\].*found -1"),
        ([[2, 2]], r"lengths\[0, 1\]: expected 0 to 1, the rows left; found 2"),
        ([[1, 1]], "expected to sum to 3, the rows; found 2"),
        ([[2**31 - 1, 2**31 - 1]], r"lengths\[0, 0\]"),
        (np.empty((0, 2), np.int32), "expected to sum to 3, the rows; found 0"),
        ([[3]], "lengths: expected 2 columns, found 1"),
        ([1, 2], "lengths: expected rank 2, found 1"),
    ],
)
def test_lengths_that_do_not_fit_the_rows_are_named(device, lengths, message):
    table = ops.EmbeddingTable(np.ones((4, 4), np.float32))
    with pytest.raises(InputError, match=message):
        device.embedding_bag([table, table], [0, 1, 2], lengths, pooling="sum")


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([[2**31, 0]], "lengths: expected values within int32"),
        ([[1.0, 2.0]], "lengths: expected int32, found float64"),
    ],
)
def test_lengths_of_another_type_are_refused(lengths, message):
    table = ops.EmbeddingTable(np.ones((4, 4), np.float32))
    with pytest.raises(InputError, match=message):
        ops.embedding_bag([table, table], [0, 1, 2], lengths, pooling="sum")


@pytest.mark.parametrize("longest", [0, 2])
def test_a_sequence_longer_than_its_column_is_refused(device, longest):
    table = ops.EmbeddingTable(np.ones((4, 4), np.float32))
    with pytest.raises(InputError, match=f"expected at most max_length {longest}, found 3"):
        device.embedding_bag([table], [0, 1, 2], [[3]], pooling="none", max_length=longest)


def test_wrong_weights_and_pooling_are_refused(device):
    table = ops.EmbeddingTable(np.ones((4, 4), np.float32))
    with pytest.raises(InputError, match="weights: expected 2, found 3"):
        device.embedding_bag([table], [0, 1], [[2]], pooling="sum", weights=np.ones(3))
    with pytest.raises(InputError, match='expected sum, mean or none; found "max"'):
        device.embedding_bag([table], [0, 1], [[2]], pooling="max")
    with pytest.raises(InputError, match="max_length: expected at least 0"):
        device.embedding_bag([table], [0], [[1]], pooling="none", max_length=-1)
    with pytest.raises(InputError, match="expected one per table"):
        device.embedding_bag([table], [0], [[1]], pooling=["sum", "sum"])


def test_an_unknown_isa_and_no_threads_are_refused():
    table = ops.EmbeddingTable(np.ones((4, 4), np.float32))
    with pytest.raises(DeviceError, match='found "sse9"'):
        ops.embedding_bag([table], [0, 1], [[2]], pooling="sum", isa="sse9")
    with pytest.raises(InputError, match="expected 1 to 1024, found 0"):
        ops.embedding_bag([table], [0, 1], [[2]], pooling="sum", threads=0)


def test_a_call_in_cpp_allocates_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)  # the program has a malloc of its own
    here = Path(__file__)
    sources = here.parents[2] / "csrc"
    common = ["-O0", "-w", f"-I{sources}", f"-I{sources / 'include'}", "-pthread"]
    if "amx_int8" in ops.supported_isas():
        common.append("-DRECENGINE_AMX")
    kernels = [
        compile_cpp(
            sources / f"ops/embedding_bag_{stem}.cc",
            tmp_path / f"{stem}.o",
            ["-c", *common, *flags],
        )
        for stem, flags in {(stem, flags) for stem, _, flags in KERNELS.values()}
    ]
    others = ("ops/embedding_bag.cc", "ops/table.cc", "cpu/isa.cc", "cpu/thread_pool.cc")
    program = compile_cpp(
        here.with_name("embedding_bag_allocations.cc"),
        tmp_path / "allocations",
        [*common, *(str(sources / other) for other in others), *map(str, kernels)],
    )
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)


def test_many_python_threads_may_call_at_once():
    rng = np.random.default_rng(1)
    tables = [make_table(rng, row_type, 500, 32) for row_type in ROW_TYPES]
    lengths = rng.integers(0, 40, (300, 5)).astype(np.int32)
    rows = make_rows(rng, tables, lengths)
    expected = reference(tables, rows, lengths, ["mean"] * 5, None, [0] * 5)

    def call(_):
        return ops.embedding_bag(tables, rows, lengths, pooling="mean", threads=3)

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(call, range(64)):
            np.testing.assert_array_equal(found, expected)
