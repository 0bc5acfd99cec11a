"""The benches of a GPU: small runs on any GPU, their peers on the CPU, and their arithmetic."""

import itertools
import json
from contextlib import nullcontext
from time import sleep
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_stub import build_driver

from bench.gpu import cosine_topk, embedding_bag, one_call
from bench.gpu import machine as measured
from bench.gpu.contest import Contender, Plan, race, without_failing
from bench.gpu.frameworks import Frameworks, find_frameworks
from bench.gpu.machine import Limits, Machine, measure_copy, measure_matmul
from bench.ops.embedding_bag import Case, Tables, check, make_ids, make_rows
from recengine import _cuda_driver, ops
from recengine._cuda_driver import Driver
from recengine.errors import RecengineError
from recengine.gpu import Gpu

LIMITS = Limits(copy_bytes_per_s=4e12, matmul_flops={"bf16": 8e14, "fp32": 5e13})
ABSENT = {"torch": "not installed", "faiss": "not installed", "jax": "not installed"}
SHORT = Plan(rounds=2, blocks=1, seconds=0.001)


def waits(answer):
    """Everything is done when a call returns."""


def machine(limits=LIMITS):
    gpu = Gpu("NVIDIA Any-1 (emulated)", "9.0", None, "13.0")
    return Machine(gpu, limits, lambda: None)


def read_tables(path):
    """Every table of a page: a list of rows, each by its column."""
    tables = []
    for block in path.read_text().split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        if cells:
            assert {len(row) for row in cells} == {len(cells[0])}
            tables.append([dict(zip(cells[0], row, strict=True)) for row in cells[2:]])
    return tables


@pytest.mark.cuda
def test_embedding_bags_are_compared_timed_and_written(tmp_path):
    kinds = [Tables(3, 50, 32, row_type) for row_type in ("fp32", "fp16", "int8", "int4")]
    wanted = [Case(tables, *shape) for tables in kinds for shape in ((1, 1), (5, 3))]
    frameworks = Frameworks(absent=ABSENT)
    written = []
    for points in embedding_bag.run(machine(), frameworks, wanted, SHORT):
        path = embedding_bag.write(tmp_path, machine(), frameworks, points)
        written.append(len(json.loads(path.with_suffix(".json").read_text())["points"]))
    assert written == [4, 8, 12, 16]
    assert path.name == "gpu-embedding-bag-nvidia-any-1-emulated"
    table = read_tables(path.with_suffix(".md"))[0]
    assert len(table) == len(points) == 16
    assert [row["ids"] for row in table[:2]] == ["uniform", "Zipf 1.05"]
    assert all(float(row["recengine"]) > 0 for row in table)
    result = json.loads(path.with_suffix(".json").read_text())
    assert result["absent"] == {"torch": "not installed"}
    assert result["machine"]["gpu"] == "NVIDIA Any-1 (emulated)"
    assert "Not compared: torch: not installed." in path.with_suffix(".md").read_text()
    assert not path.with_suffix(".png").exists()


@pytest.mark.cuda
def test_sums_that_are_wrong_are_not_timed():
    case = Case(Tables(2, 20, 8, "fp16"), 4, 2)
    contest = embedding_bag.Contest(case.tables, machine(), Frameworks(), np.random.default_rng(0))
    contest.stored[1] += 1
    with pytest.raises(RecengineError, match="recengine, checked is off by"):
        embedding_bag.measure(contest, case, False, SHORT, LIMITS)


@pytest.mark.cuda
def test_searches_are_compared_timed_and_written(tmp_path):
    frameworks = Frameworks(absent=ABSENT)
    written = []
    for results in cosine_topk.run(machine(), frameworks, [(8200, 64)], SHORT, 10, (1, 9)):
        path = cosine_topk.write(tmp_path, machine(), frameworks, results)
        written.append(len(read_tables(path.with_suffix(".md"))[0]))
    assert written == [1, 2]
    table = read_tables(path.with_suffix(".md"))[0]
    assert [row["batch"] for row in table] == ["1", "9"]
    assert all(float(row["recengine, single"]) > 0 for row in table)
    (result,) = json.loads(path.with_suffix(".json").read_text())["results"]
    assert [point["share_found"] for point in result["points"]] == [{"recengine": 1.0}] * 2
    assert all(point["ratio"] is None for point in result["points"])
    assert "not installed; faiss: not installed; jax" in path.with_suffix(".md").read_text()


@pytest.mark.cuda
def test_answers_that_are_not_the_cpus_are_not_timed():
    rng = np.random.default_rng(0)
    vectors, queries = rng.standard_normal((300, 8)), rng.standard_normal((2, 8))
    index, other = ops.ItemIndex(vectors), ops.ItemIndex(-vectors)
    with pytest.raises(RecengineError, match="not those of the CPU"):
        cosine_topk.check_ours(
            Frameworks(), index, ops.DeviceItemIndex(other), queries.astype(np.float32), 5
        )


@pytest.mark.cuda
@pytest.mark.parametrize("op", one_call.CALLS)
def test_one_call_is_profiled_after_one_that_is_not(op):
    one_call.run(op, 120, nullcontext)


@pytest.mark.parametrize("row_type", ["fp32", "fp16"])
def test_torchs_bags_are_those_of_fp64(row_type):
    torch = pytest.importorskip("torch")
    frameworks = Frameworks(torch=torch, device="cpu")
    case = Case(Tables(3, 40, 16, row_type), 5, 4)
    rng = np.random.default_rng(0)
    stored = make_rows(case.tables, rng)
    ids = make_ids(case, False, 2, rng)
    weights = [frameworks.to_gpu(rows) for rows in stored]
    contenders = embedding_bag.torch_bags(frameworks, weights, ids, waits)
    for i in range(2):
        answers = {
            name: lambda c=c, i=i: embedding_bag.as_sums(c.run(i)) for name, c in contenders.items()
        }
        assert len(answers) == 2
        check(case.tables, stored, answers, ids[i])


def test_peers_searches_find_the_best_by_brute_force(monkeypatch):
    torch, faiss = pytest.importorskip("torch"), pytest.importorskip("faiss")
    monkeypatch.setattr(cosine_topk, "CHUNK_ITEMS", 128)
    rng = np.random.default_rng(0)
    items, queries = (rng.standard_normal((n, 16), dtype=np.float32) for n in (300, 4))
    faiss_on_cpu = SimpleNamespace(
        GpuIndexFlatIP=lambda _, dim: faiss.IndexFlatIP(dim), StandardGpuResources=lambda: None
    )
    searchers = cosine_topk.torch_searchers(Frameworks(torch, device="cpu"), items, 70, waits)
    searchers["faiss"] = cosine_topk.faiss_searcher(faiss_on_cpu, items, 70)
    contenders = {name: searcher.contender([queries]) for name, searcher in searchers.items()}
    able, failed = without_failing(contenders)
    assert set(failed) <= {
        "torch, bf16 items, fp32 scores",
        "torch, bf16 items, fp32 scores, chunked",
    }
    assert len(able) + len(failed) == 7
    expected = np.argsort(-queries @ items.T, axis=1)[:, :70]
    for name, contender in able.items():
        found = searchers[name].rows(contender.run(0))
        if searchers[name].exact:
            np.testing.assert_array_equal(found, expected)
        else:
            assert cosine_topk.share_found(name, found, expected, None) > 0.9


def test_a_peer_that_must_be_exact_and_is_not_is_an_error():
    ours, worse = np.array([[1, 2]]), np.array([[2, 3]])
    assert cosine_topk.share_found("peer", worse, ours, None) == 0.5
    with pytest.raises(RecengineError, match="peer finds other items"):
        cosine_topk.share_found("peer", worse, ours, lambda rows: -rows.astype(np.float32))


def test_a_peer_that_fails_is_left_out_and_its_error_kept():
    def fails(i):
        raise RuntimeError("out of memory\nmore")

    works = Contender(lambda i: i, waits)
    able, failed = without_failing({"recengine": works, "peer": Contender(fails, waits)})
    assert (list(able), failed) == (["recengine"], {"peer": "out of memory"})
    with pytest.raises(RuntimeError):
        without_failing({"recengine": Contender(fails, waits)})


def test_a_race_waits_once_a_block_and_walks_the_pool():
    ran, waited = [], []
    contender = Contender(lambda i: ran.append(i) or len(ran), waited.append)
    times = race({"recengine": contender}, 3, Plan(rounds=2, blocks=4, seconds=0.01))["recengine"]
    assert waited[-1] == len(ran)
    assert 2 * (1 + 2 + 2) <= len(waited) < len(ran) / 2
    assert set(ran) == {0, 1, 2}
    assert times.queued[0] <= times.queued[1] <= times.queued[2]


def test_slow_calls_are_timed_twice_a_turn():
    ran = []
    contender = Contender(lambda i: ran.append(i) or sleep(0.02), waits)
    times = race({"recengine": contender}, 1, Plan(rounds=1, blocks=1, seconds=0.001))
    assert len(ran) == 2 + 2 + 2
    assert times["recengine"].single[1] >= 20


def test_every_framework_is_there_or_said_to_be_absent():
    found = find_frameworks()
    for name in ("torch", "faiss", "jax"):
        assert (getattr(found, name) is None) == (name in found.absent)


def seconds_apart():
    """A clock that is a second further every time, which is what ten calls take."""
    clock = itertools.count()
    return SimpleNamespace(perf_counter=lambda: next(clock))


def test_the_rate_of_a_copy_counts_bytes_read_and_written(tmp_path, monkeypatch):
    monkeypatch.setattr(_cuda_driver, "_LIBRARY", build_driver(tmp_path / "libcuda.so.1"))
    monkeypatch.setattr(measured, "time", seconds_apart())
    assert measure_copy(Driver(), 1 << 20) == 2 * 10 * (1 << 20)


def test_the_rate_of_a_product_counts_two_operations_for_every_pair(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(measured, "time", seconds_apart())
    rate = pytest.approx(2 * 10 * 8**3)
    assert measure_matmul(torch, "cpu", 8, lambda: None) == {"bf16": rate, "fp32": rate}


def bag_point(case, ms):
    moved = embedding_bag.moved_bytes(case)
    return {
        "tables": str(case.tables),
        "row_bytes": case.tables.row_bytes,
        "batch": case.batch,
        "length": case.length,
        "ids": "uniform",
        "ms": ms,
        "copy_share": LIMITS.copy_share(moved, ms["recengine"]),
    }


def test_bars_of_bags_are_shares_of_the_copy_and_ratios_to_torchs_calls():
    large = Case(Tables(8, 1_000_000, 128, "fp32"), 65536, 1)
    moved = 8 * 65536 * (512 + 8 + 4 + 512)
    assert embedding_bag.moved_bytes(large) == moved
    at_the_rate = moved / 4e12 * 1e3
    small = Case(Tables(8, 1_000_000, 32, "fp32"), 64, 20)
    int8 = Case(Tables(8, 1_000_000, 128, "int8"), 65536, 1)
    bars = embedding_bag.find_bars(
        [
            bag_point(large, {"recengine": 2 * at_the_rate}),
            bag_point(small, {"recengine": 1.0, embedding_bag.CALLS: 9.0}),
            bag_point(int8, {"recengine": 1.0}),
            bag_point(small, {"recengine": 1.0}),
            bag_point(small, {"recengine": 1.0, embedding_bag.CALLS: 9.0}) | {"ids": "Zipf 1.05"},
        ]
    )
    assert [(bar.wanted, pytest.approx(bar.found), bar.met) for bar in bars] == [
        (0.8, 0.5, False),
        (8, 9, True),
    ]


def test_bars_of_searches_are_those_of_the_missions_catalog():
    def point(batch, ms, **peers):
        shares = cosine_topk.limit_shares(LIMITS, 10_000_000, 128, batch, ms)
        return {"batch": batch, "ms": {"recengine": ms, **peers}, **shares}

    torchs = {"torch, fp32": 3.0, "torch, fp32, chunked": 2.5, "torch, bf16": 0.5, "jax": 0.4}
    points = [point(1, 0.4, **torchs), point(128, 0.8), point(256, 1.0), point(1024, 8.192)]
    catalog = {"kind": "gaussian", "rows": 10_000_000, "dim": 128, "k": 100, "points": points}
    bars = cosine_topk.find_bars([catalog | {"rows": 1_000_000}, catalog])
    assert [(bar.wanted, pytest.approx(bar.found), bar.met) for bar in bars] == [
        (0.8, 0.8, True),
        (2.0, 6.25, True),
        (0.8, 0.4, False),
        (0.6, 0.4, False),
    ]


def test_codes_are_read_in_multiples_of_32_bytes():
    shares = cosine_topk.limit_shares(Limits(1e9, {}), 1_000_000, 33, 1, 64.0)
    assert shares == {"copy_share": pytest.approx(1.0), "matmul_share": None}
