import argparse
import json
import mmap
import os
import time

import numpy as np
import pytest

from bench.ops import checked_ids, contest, cosine_topk, embedding_bag, huge_pages
from bench.ops.limits import Limits
from recengine.errors import RecengineError
from recengine.serving.bench.report import Bar

RATES = {"1": 1e8, "2": 2e8, "4": 3e8, "8": 4e8}
LIMITS = Limits(1e12, 8e12, {"64000000": 2e10, "1000": 9e10}, RATES, RATES)


def points_of(row_type):
    pytest.importorskip("fbgemm_gpu")
    case = embedding_bag.Case(embedding_bag.Tables(4, 300, 16, row_type), 5, 3, 1.5, 0.75)
    bags = embedding_bag.Contest(case.tables, 2, np.random.default_rng(0))
    return bags, [
        embedding_bag.measure(bags, case, zipf, 1, 0.01, LIMITS) for zipf in (False, True)
    ]


@pytest.mark.parametrize("row_type", ["fp32", "fp16", "bf16", "int8", "int4"])
def test_bags_of_every_row_type_are_compared_and_timed(row_type):
    bags, points = points_of(row_type)
    peers = {"FBGEMM", "FBGEMM, tables on two threads"} if row_type != "bf16" else set()
    peers |= {"torch"} if row_type in ("fp32", "fp16", "bf16") else set()
    for point in points:
        assert set(point["ms"]) == {"recengine", *peers} == set(bags.memory())
        low, high = point["quartiles_ms"]["recengine"]
        assert low <= point["ms"]["recengine"] <= high
        assert (point["torch_16_bit_ms"] is None) == (row_type not in ("fp16", "bf16"))
    for rows in bags.memory().values():
        assert sum(array.nbytes for array in rows) >= 4 * 300 * bags.tables.row_bytes
    head, rule, *lines = embedding_bag.table(points).splitlines()
    assert {line.count("|") for line in (head, rule, *lines)} == {head.count("|")}
    assert [
        line.count(contest.spread(point, 1e3, 1)) for line, point in zip(lines, points, strict=True)
    ] == [1, 1]


@pytest.mark.parametrize("row_type", ["fp16", "bf16"])
def test_torch_answers_in_fp32_as_all_do(row_type):
    torch = pytest.importorskip("torch")
    pytest.importorskip("fbgemm_gpu")
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[row_type]
    tables = embedding_bag.Tables(4, 300, 16, row_type)
    rng = np.random.default_rng(0)
    ids = embedding_bag.make_ids(embedding_bag.Case(tables, 5, 3), False, 1, rng)
    contenders = embedding_bag.Contest(tables, 2, rng).contenders(ids)
    sums, rounded = (contenders[name](0) for name in ("torch", "torch, 16-bit sums"))
    assert {column.dtype for column in sums} == {torch.float32}
    assert {column.dtype for column in rounded} == {dtype}


def test_bags_are_held_against_peers_and_random_lines_where_ids_are_uniform():
    _, (uniform, zipf) = points_of("int8")
    ratio, lines = embedding_bag.find_bars([uniform, zipf])
    assert (ratio.wanted, ratio.found) == (1.5, uniform["ratio"])
    assert lines.name == "4 × 300 × 16 int8, 5 × 3, uniform: share of the random-line rate"
    assert lines.wanted == 0.75
    # 60 rows of 20 bytes, one line each
    assert lines.found == pytest.approx(1e3 * 60 / 1e8 / uniform["ms"]["recengine"])


def test_sums_coarser_than_their_type_are_an_error():
    tables = embedding_bag.Tables(2, 50, 8, "bf16")
    rng = np.random.default_rng(0)
    stored = embedding_bag.make_rows(tables, rng)
    ids = embedding_bag.make_ids(embedding_bag.Case(tables, 4, 2), False, 1, rng)[0]
    values = [(rows.astype(np.uint32) << 16).view(np.float32) for rows in stored]
    sums = np.hstack([rows[ids[:, t]].sum(axis=1) for t, rows in enumerate(values)])
    rounded = {"torch": lambda: sums.astype(np.float16).astype(np.float32)}
    embedding_bag.check(tables, stored, rounded, ids, {"torch": embedding_bag.HALF_EPS["bf16"]})
    with pytest.raises(RecengineError, match="torch is off by"):
        embedding_bag.check(tables, stored, rounded, ids)


@pytest.mark.parametrize(("kind", "partial"), [("gaussian", False), ("trained", True)])
def test_searches_say_whether_the_build_chose_partial_scans(tmp_path, kind, partial):
    pytest.importorskip("faiss")
    pytest.importorskip("usearch")
    catalog = cosine_topk.make_catalog(kind, 100_000, 64, tmp_path)
    result = cosine_topk.run(kind, catalog, 10, 1, 0.01, LIMITS)
    assert bool(result["partial_scans"]) == partial
    assert ("No partial scans were chosen" in cosine_topk.table(result)) == (not partial)
    assert result["huge_pages"] == {}  # too few items
    assert [point["batch"] for point in result["points"]] == [1, 8, 32, 256]


def test_most_of_a_trained_catalogs_energy_is_in_half_of_the_directions():
    directions = cosine_topk.spectrum("trained", 64, np.random.default_rng(0))
    energy = np.square(directions).sum(axis=1)
    assert energy[:32].sum() / energy.sum() == pytest.approx(0.96, abs=0.005)
    np.testing.assert_allclose(directions @ directions.T, np.diag(energy), atol=1e-12)


def test_filters_that_let_few_items_pass_are_compared_with_peers(tmp_path):
    pytest.importorskip("faiss")
    catalog = cosine_topk.make_catalog("gaussian", 9_001, 16, tmp_path)
    points = cosine_topk.low_rates(catalog, 10, 1, 0.005)
    assert [(point["rate"], point["batch"]) for point in points] == [
        (rate, batch) for rate in (0.001, 0.01, 0.03) for batch in (1, 32, 256)
    ]
    peers = {"faiss, IDSelectorBitmap", "faiss, IDSelectorArray", "torch, gathered rows"}
    assert all(set(point["ms"]) == peers | {"recengine"} for point in points)
    assert len(cosine_topk.low_rate_table(points).splitlines()) == 2 + 9
    assert cosine_topk.low_rate_ratios(points)["0.1% allowed, batch 32"] == points[1]["ratio"]


def test_batch_256_is_held_against_vectors_and_tiles_by_the_time_in_each():
    points = [{"batch": batch, "ms": {"recengine": 4.0}} for batch in (1, 256)]
    first = {"kind": "gaussian", "rows": 1_000_000, "dim": 64, "points": points}
    read, multiplied = cosine_topk.limit_bars(first, LIMITS, 20.0)
    assert read.found == pytest.approx(64e6 / 2e10 / 4e-3)
    assert multiplied.found == pytest.approx(256 * 64e6 / 1e12 / 20e-3)
    assert "batch 256 in avx512_vnni" in multiplied.name
    assert "4.00 ms in tiles, 51% of their rate; 20.00 ms" in cosine_topk.tile_share(
        first, LIMITS, 20.0
    )


def test_who_was_slow_before_a_race_is_not_called_again():
    def never(_):
        raise AssertionError

    taken = contest.race({"slow": never, "fast": abs}, 2, 2, 0.001, {"slow": 6.0, "fast": 9e-3})
    assert taken["slow"] == (6000.0,) * 3
    assert taken["fast"].median < 1


def test_what_a_check_costs_is_that_of_a_round():
    speeds = np.linspace(1, 5, 41)  # of a machine that gets slower
    cost = checked_ids.find_cost([(1.02 * speed, speed) for speed in speeds])
    assert cost.checked_us == pytest.approx(1.02 * 3)
    assert cost.unchecked_us == pytest.approx(3)
    assert cost[2:] == pytest.approx((0.02, 0.02, 0.02))
    (bar,) = checked_ids.find_bars({"rows": cost})
    assert bar.met
    assert "| rows | 3.1 | 3.0 | +2.0% | +2.0% to +2.0% |" in checked_ids.table({"rows": cost})


def test_memory_without_huge_pages_is_told_from_memory_with_them():
    size = 64 << 20
    small = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    small.madvise(mmap.MADV_NOHUGEPAGE)
    without = np.frombuffer(small, np.uint8)
    without[:] = 1
    assert huge_pages.share([without]) == 0
    advised = np.ones(size, np.uint8)  # NumPy asks for them
    assert 0 <= huge_pages.share([advised]) <= 1
    assert 0 <= huge_pages.share([advised, without]) <= 0.5
    found = {"tables": huge_pages.shares({"recengine": [advised], "faiss": [without]})}
    (bar,) = huge_pages.find_bars(found)
    assert bar.found == -found["tables"]["recengine"]
    share = found["tables"]["recengine"]
    assert f"| tables | {share:.0%} | 0% |" in huge_pages.table(found)


def test_of_little_memory_no_share_in_huge_pages_is_told():
    small = [np.ones(1 << 20, np.uint8)]
    found = {"tables": huge_pages.shares({"recengine": small, "faiss": small})}
    assert found == {"tables": {}}
    assert huge_pages.find_bars(found) == []
    assert "tables" not in huge_pages.table(found)


@pytest.mark.parametrize(
    ("before", "after"), [("", ""), ("glibc.malloc.check=1", "glibc.malloc.check=1:")]
)
def test_a_bench_starts_anew_with_a_malloc_that_asks_for_huge_pages(monkeypatch, before, after):
    started = []
    monkeypatch.setenv("GLIBC_TUNABLES", before)
    monkeypatch.setattr(os, "execv", lambda *command: started.append(command))
    huge_pages.for_every_malloc()
    huge_pages.for_every_malloc()
    assert len(started) == 1
    assert os.environ["GLIBC_TUNABLES"] == after + "glibc.malloc.hugetlb=1"


def test_cases_in_which_a_peer_is_faster_are_named():
    ratios = {"one": 0.5, "two": 2.0, "three": 0.999}
    assert contest.peers_ahead(ratios, " of ids") == (
        "A peer is faster in 2 of the 3 cases of ids (its time over ours): one (0.5); "
        "three (0.999)."
    )
    assert contest.peers_ahead({"two": 2.0}) == "No peer is faster in any of the 1 cases."


def test_a_result_says_what_it_took_and_where_peers_are_faster(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = argparse.Namespace(quick=False, out=tmp_path, started=time.monotonic() - 90)
    bars = [Bar("a share", 0.75, 0.7, True)]
    contest.publish(
        arguments, "any", "Any", LIMITS, (), {"points": []}, ["Text."], {"one": 0.5}, bars
    )
    (path,) = tmp_path.glob("any-*.md")
    page = path.read_text()
    assert "| a share | 0.7 | ≥ 0.75 | **missed** |" in page
    assert "A peer is faster in 1 of the 1 cases (its time over ours): one (0.5)." in page
    assert "Took 1.5 min." in page
    assert json.loads(path.with_suffix(".json").read_text())["took_minutes"] == pytest.approx(
        1.5, 0.1
    )
    assert "Took 1.5 min." in capsys.readouterr().out
