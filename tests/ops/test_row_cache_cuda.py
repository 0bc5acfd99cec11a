"""Tables whose rows are on the host, with a cache of hot rows on the GPU: whatever that holds, the
results are to the bit those of a table that is on the GPU."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import pool_on_gpu
from test_embedding_bag import FUSED, ROW_TYPES, make_rows, make_table

from recengine import ops
from recengine.errors import DeviceError, InputError

pytestmark = pytest.mark.cuda

MAP_BYTES = 32  # of a row that is held


def spill(table, held, **options):
    """A table with memory on the GPU for so many rows."""
    stored = table.data.strides[0]
    padded = -(-stored // 16) * 16
    row_bytes = padded if 3 * (padded - stored) <= stored else stored
    return ops.DeviceTable(table, cache_bytes=held * (row_bytes + MAP_BYTES), **options)


def read(table, rows):
    """The rows as they are."""
    rows = np.asarray(rows, np.int64)
    return pool_on_gpu([table], rows, np.ones((rows.size, 1), np.int32), pooling="sum")


def hit_rate(table, rows):
    """Of these rows: how many are held, by a look at all of them. They count as read."""
    table.refresh()
    read(table, rows)
    table.refresh()
    stats = table.stats()
    assert stats.samples == len(rows)
    return stats.sampled_hits / stats.samples


@pytest.mark.parametrize("row_type", [*ROW_TYPES, *FUSED])
@pytest.mark.parametrize("pooling", ["sum", "mean", "none"])
@pytest.mark.parametrize("held", [0, 1, 7, 50])
def test_every_row_type_and_pooling(row_type, pooling, held):
    rng = np.random.default_rng(held)
    tables = [make_table(rng, row_type, 50, dim) for dim in (7, 64, 520)]
    lengths = np.array([[0, 3, 1], [5, 0, 1], [40, 17, 2]], np.int32)
    spilled = [spill(table, held) for table in tables]
    on_gpu = [ops.DeviceTable(table) for table in tables]
    for step in range(3):
        rows = make_rows(rng, tables, lengths)
        call = {
            "pooling": pooling,
            "max_length": 40,
            "weights": rng.standard_normal(rows.size).astype(np.float32) if step else None,
        }
        found = pool_on_gpu(spilled, rows, lengths, **call)
        np.testing.assert_array_equal(found, pool_on_gpu(on_gpu, rows, lengths, **call))
        for table in spilled:
            assert table.stats().held == held
            table.refresh()


@st.composite
def histories(draw):
    """A table, how many rows are held, and what happens to it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 60))
    table = make_table(
        rng, draw(st.sampled_from([*ROW_TYPES, *FUSED])), count, draw(st.integers(1, 80))
    )
    some = st.lists(st.integers(0, count - 1), max_size=60)
    steps = draw(st.lists(st.tuples(st.sampled_from(["read", "warm", "refresh"]), some)))
    return table, draw(st.integers(1, 60)), steps


@settings(max_examples=60)
@given(history=histories())
def test_whatever_happens_rows_are_right_and_those_held_are_found(history):
    table, held, steps = history
    expected = read(ops.DeviceTable(table), range(table.rows))
    spilled = spill(table, held)
    held = min(held, table.rows)
    for action, rows in steps:
        if action == "warm":
            spilled.warm(rows)
            first = list(dict.fromkeys(rows))[:held]
            assert not first or hit_rate(spilled, first) == 1
        elif action == "refresh":
            assert 0 <= spilled.refresh() <= held
        np.testing.assert_array_equal(read(spilled, rows), expected[rows])
    np.testing.assert_array_equal(read(spilled, range(table.rows)), expected)
    assert spilled.stats().held == held


@pytest.mark.parametrize("columns", [100, 400])
def test_columns_with_and_without_a_cache_in_any_number_of_launches(columns):
    rng = np.random.default_rng(0)
    tables = [
        make_table(rng, [*ROW_TYPES, *FUSED][c % 9], 20, int(rng.integers(1, 80)))
        for c in range(columns)
    ]
    on_gpu = [ops.DeviceTable(table) for table in tables]
    mixed = [
        spill(table, c % 5) if c % 3 and c < columns - 10 else whole
        for c, (table, whole) in enumerate(zip(tables, on_gpu, strict=True))
    ]
    lengths = rng.integers(0, 4, (5, columns)).astype(np.int32)
    rows = make_rows(rng, tables, lengths)
    expected = pool_on_gpu(on_gpu, rows, lengths, pooling="mean")
    for _ in range(2):
        np.testing.assert_array_equal(pool_on_gpu(mixed, rows, lengths, pooling="mean"), expected)
        for table in mixed:
            table.refresh()


def test_one_table_may_stand_in_several_columns():
    rng = np.random.default_rng(0)
    table = make_table(rng, "fp32", 30, 20)
    lengths = rng.integers(0, 9, (4, 3)).astype(np.int32)
    rows = make_rows(rng, [table] * 3, lengths)
    spilled = spill(table, 5)
    for _ in range(3):
        np.testing.assert_array_equal(
            pool_on_gpu([spilled] * 3, rows, lengths, pooling="sum"),
            pool_on_gpu([ops.DeviceTable(table)] * 3, rows, lengths, pooling="sum"),
        )
        spilled.refresh()
    assert spilled.stats().samples == rows.size


def test_calls_are_right_while_the_cache_changes():
    """Several threads read while another one lets the cache change as much as it can."""
    rng = np.random.default_rng(0)
    table = make_table(rng, "fp16", 400, 32)
    expected = read(ops.DeviceTable(table), range(400))
    spilled = spill(table, 100)
    stop = threading.Event()

    def call(seed):
        rng = np.random.default_rng(seed)
        for _ in range(400):
            rows = rng.integers(0, 400, 300)
            np.testing.assert_array_equal(read(spilled, rows), expected[rows])

    def change():
        rng = np.random.default_rng(0)
        replaced = 0
        while not stop.is_set():
            replaced += spilled.warm(rng.permutation(400)) + spilled.refresh()
        return replaced

    with ThreadPoolExecutor(6) as threads:
        changes = [threads.submit(change) for _ in range(2)]
        for done in [threads.submit(call, seed) for seed in range(4)]:
            done.result()
        stop.set()
        assert all(future.result() > 100 for future in changes)


def test_the_rows_that_are_read_most_are_held_in_the_end():
    rng = np.random.default_rng(0)
    ranks = rng.permutation(2000)  # rank -> row
    mass = 1 / np.arange(1, 2001)
    mass /= mass.sum()
    spilled = spill(ops.EmbeddingTable(np.zeros((2000, 4), np.float32)), 100)
    rates = []
    for _ in range(12):
        read(spilled, ranks[rng.choice(2000, 4000, p=mass)])
        spilled.refresh()
        stats = spilled.stats()
        rates.append(stats.sampled_hits / stats.samples)
    best = mass[:100].sum()
    assert rates[0] < 0.2  # the first rows of the table
    assert min(rates[4:]) > 0.9 * best
    assert hit_rate(spilled, ranks[:50]) == 1


def test_what_was_popular_once_fades():
    spilled = spill(ops.EmbeddingTable(np.zeros((100, 4), np.float32)), 10)
    old, new = np.arange(20, 30), np.arange(50, 60)
    for _ in range(3):
        read(spilled, np.repeat(old, 1000))
        spilled.refresh()
    assert hit_rate(spilled, old) == 1
    for _ in range(8):
        read(spilled, np.repeat(new, 1000))
        spilled.refresh()
    assert hit_rate(spilled, new) == 1


def test_warm_rows_are_held_before_anything_is_counted():
    table = ops.EmbeddingTable(np.arange(400, dtype=np.float32).reshape(100, 4))
    spilled = spill(table, 10)
    assert hit_rate(spilled, range(10)) == 1  # without it: the first rows
    hot = np.arange(99, 79, -1)
    assert spilled.warm(hot) == 10
    assert spilled.warm(hot) == 0
    assert hit_rate(spilled, hot[:10]) == 1
    np.testing.assert_array_equal(read(spilled, range(100)), table.data)


def test_rows_read_by_chance_do_not_replace_warm_ones():
    spilled = spill(ops.EmbeddingTable(np.zeros((100, 4), np.float32)), 10)
    spilled.warm(np.arange(50, 60))
    read(spilled, range(50))
    assert spilled.refresh() == 0
    read(spilled, np.repeat([7, 8], 3))
    assert spilled.refresh() == 2


def test_samples_become_rarer_when_there_are_too_many():
    """The rows of many calls are sampled, and not those of the first alone."""
    spilled = spill(ops.EmbeddingTable(np.zeros((9, 4), np.float32)), 1)
    rows = np.zeros(20_000, np.int64)
    counts = []
    for _ in range(4):
        read(spilled, rows)
        spilled.refresh()
        counts.append(spilled.stats().samples)
    assert counts[0] == 1 << 14
    assert counts[1] == pytest.approx(10_000, rel=0.02)
    assert counts[2] == pytest.approx(10_000, rel=0.02)


@pytest.mark.parametrize("row_type", ["fp32", "int8", ("int8", "tbe")])
def test_the_cache_keeps_to_its_bytes(row_type):
    table = make_table(np.random.default_rng(0), row_type, 50, 16)
    one = min(b for b in range(200) if ops.DeviceTable(table, cache_bytes=b).stats().held == 1)
    assert one >= table.data.strides[0] + MAP_BYTES
    for cache_bytes, held in [
        (0, 0),
        (one - 1, 0),
        (2 * one - 1, 1),
        (50 * one, 50),
        (1 << 20, 50),
    ]:
        stats = ops.DeviceTable(table, cache_bytes=cache_bytes).stats()
        assert stats == ops.CacheStats(held=held, refreshes=0, samples=0, sampled_hits=0)


def test_a_table_on_the_gpu_holds_all_rows():
    table = ops.EmbeddingTable(np.ones((9, 4), np.float32))
    for on_gpu in (ops.DeviceTable(table), ops.DeviceTable.from_array(ops.to_device(table.data))):
        assert on_gpu.refresh() == on_gpu.warm([8, 1]) == 0
        assert on_gpu.stats().held == 9
    without_cache = ops.DeviceTable(table, cache_bytes=0)
    assert without_cache.refresh() == without_cache.warm([8, 1]) == 0
    assert without_cache.stats().held == 0


def test_a_row_outside_its_table_is_named():
    table = ops.EmbeddingTable(np.ones((9, 4), np.float32), name="t")
    spilled = spill(table, 3)
    for row in (-1, 9, 2**32 - 1, 2**32, 2**63 - 1, -(2**63)):
        with pytest.raises(InputError, match=rf'table "t": rows\[1\]: .* 0 to 8, found {row}'):
            read(spilled, [8, row])
    assert np.array_equal(read(spilled, [8, 0]), np.ones((2, 4)))


@pytest.mark.parametrize("row_type", [*ROW_TYPES, *FUSED])
def test_without_a_check_values_out_of_range_read_nothing(row_type):
    table = spill(make_table(np.random.default_rng(0), row_type, 5, 24), 2)
    for rows, lengths in [
        ([5, -1, 2**63 - 1, -(2**63), 2**32 - 1], [[5]]),
        ([0, 1], [[2**31 - 1]]),
        ([0, 1], [[2**31 - 1]] * 300 + [[-5]] * 300),
    ]:
        found = pool_on_gpu([table], rows, lengths, pooling="sum", check=False)
        assert found.shape == (len(lengths), 24)
    table.refresh()
    assert table.stats().held == 2


def test_arguments_that_do_not_fit_are_named():
    table = ops.EmbeddingTable(np.ones((9, 4), np.float32), name="t")
    with pytest.raises(InputError, match='"t": cache_bytes: expected at least 0, found -1'):
        ops.DeviceTable(table, cache_bytes=-1)
    with pytest.raises(DeviceError, match="invalid device ordinal"):
        ops.DeviceTable(table, 1000, cache_bytes=100)
    spilled = spill(table, 3)
    for row in (-1, 9, 2**32):
        with pytest.raises(InputError, match=rf'"t": rows\[1\]: expected 0 to 8, found {row}'):
            spilled.warm([8, row])
    with pytest.raises(InputError, match="rows: expected int64, found float64"):
        spilled.warm([0.5])
    with pytest.raises(InputError, match="rows: expected rank 1, found 2"):
        spilled.warm([[1]])
