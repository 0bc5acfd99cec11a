"""Overload: what a server still answers in time when more arrives than it can do."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.error import URLError

import numpy as np

from recengine.errors import ServerError
from recengine.serving.bench.open_loop import (
    Answers,
    poisson_arrivals,
    send,
    send_one_by_one,
    serialize,
    without_collections,
)
from recengine.serving.bench.report import Bar
from recengine.serving.bench.requests import Request

_SHED_METRIC = re.compile(r"^recengine_shed_total\{(.*?)\} ([0-9.e+]+)$", re.MULTILINE)
_IDLE_REQUESTS = 200
_NEXT_REQUESTS = 20


@dataclasses.dataclass(frozen=True)
class OverloadPlan:
    """What to offer.

    Attributes:
        loads: offered rates as multiples of capacity.
        seconds: length of each burst; the capacity is measured for half of it before each.
        rounds: bursts of each load, in turn; medians are reported.
        deadline_ms: an answer within it is a good one; the server is told.
        in_flight: requests kept in flight to find the capacity.
    """

    loads: Sequence[float] = (1, 2, 4, 10)
    seconds: float = 8.0
    rounds: int = 3
    deadline_ms: float = 50.0
    in_flight: int = 4


def split_cores() -> tuple[set[int], set[int]]:
    """Cores of the server and of the load generator; the same ones where there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    return (set(cores[half:]), set(cores[:half])) if half else (set(cores), set(cores))


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Inside, this thread, and the processes and threads it starts, use these cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def count_sheds(metrics_url: str) -> float:
    """The server's own count of shed requests, over all models and reasons."""
    # The endpoint opens some 50 ms after the server says that it is ready.
    deadline = time.monotonic() + 5
    while True:
        try:
            with urllib.request.urlopen(f"http://{metrics_url}/metrics", timeout=10) as answer:
                text = answer.read().decode()
            break
        except URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    return sum(float(value) for _, value in _SHED_METRIC.findall(text))


def measure_overload(
    url: str,
    metrics_url: str,
    model: str,
    requests: Sequence[Request],
    plan: OverloadPlan,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Idle latency, then bursts of every load, before each its capacity, after it a few requests.

    Args:
        url: gRPC address of the server.
        metrics_url: `host:port` of its metrics.
        model: the model asked.
        requests: taken in a circle.
        plan: what to offer.
        progress: told each number as it comes.

    Returns:
        `idle_p50_ms`, `idle_p99_ms`, `capacity` [1/s], `bursts`, one per load (see
        `summarize_bursts`), and `runs`, all of them.

    Raises:
        ServerError: a request failed for another reason than load.
    """
    plain = serialize(model, requests, None)
    timed = serialize(model, requests, plan.deadline_ms)
    _checked(send_one_by_one(url, plain[:_NEXT_REQUESTS]))
    with without_collections():
        idle = _checked(
            send_one_by_one(url, [plain[i % len(plain)] for i in range(_IDLE_REQUESTS)])
        )
    idle_p50, idle_p99 = np.percentile(idle.latency_ms, [50, 99])
    progress(f"idle p50 {idle_p50:.1f} ms, p99 {idle_p99:.1f} ms")
    bursts: dict[float, list[dict[str, Any]]] = {load: [] for load in plan.loads}
    for round_ in range(plan.rounds):
        for load in plan.loads:
            # The machine's speed changes: what a burst had to hold is measured just before it.
            with without_collections():
                capacity = measure_capacity(url, plain, plan)
                before = count_sheds(metrics_url)
                due = poisson_arrivals(load * capacity, plan.seconds, seed=round_)
                answers = _checked(send(url, timed, due))
                after_burst = _checked(send_one_by_one(url, timed[:_NEXT_REQUESTS]))
            counted = count_sheds(metrics_url) - before
            burst = describe_burst(load, capacity, answers, after_burst, counted, plan)
            bursts[load].append(burst)
            progress(
                f"round {round_ + 1}, {load:g}x: capacity {capacity:.1f}/s, offered "
                f"{burst['offered_per_s']:.0f}/s, good {burst['of_capacity']:.1%} of capacity, "
                f"answered p99 {burst['answered_p99_ms']:.1f} ms, shed {burst['shed']} "
                f"(server counted {counted:.0f}), next {burst['next_ms']:.1f} ms"
            )
    return {
        "deadline_ms": plan.deadline_ms,
        "seconds": plan.seconds,
        "rounds": plan.rounds,
        "idle_p50_ms": float(idle_p50),
        "idle_p99_ms": float(idle_p99),
        "capacity": float(np.median([b["capacity"] for runs in bursts.values() for b in runs])),
        "bursts": [summarize_bursts(runs) for runs in bursts.values()],
        "runs": [run for runs in bursts.values() for run in runs],
    }


def measure_capacity(url: str, messages: Sequence[bytes], plan: OverloadPlan) -> float:
    """Answers per second with `in_flight` requests always waiting and no deadline."""

    def ask(count: int) -> float:
        share = [messages[i % len(messages)] for i in range(count)]
        with ThreadPoolExecutor(plan.in_flight) as pool:
            runs = list(
                pool.map(lambda _: _checked(send_one_by_one(url, share)), range(plan.in_flight))
            )
        return plan.in_flight * count / max(run.seconds for run in runs)

    rough = ask(8)
    return ask(max(8, int(rough * plan.seconds / 2 / plan.in_flight)))


def describe_burst(
    load: float,
    capacity: float,
    answers: Answers,
    after: Answers,
    counted: float,
    plan: OverloadPlan,
) -> dict[str, Any]:
    """What came of one burst; rates are per second of the burst."""
    by_server = counted - int((after.outcome == "shed").sum())
    answered, shed = answers.latencies_ms("ok"), answers.latencies_ms("shed")
    good = int((answered <= plan.deadline_ms).sum())
    return {
        "load": load,
        "capacity": capacity,
        "of_capacity": good / plan.seconds / capacity,
        "offered_per_s": len(answers.due_s) / plan.seconds,
        "good_per_s": good / plan.seconds,
        "late_per_s": (len(answered) - good) / plan.seconds,
        "shed": len(shed),
        "shed_counted_by_server": by_server,
        "shed_miscounted": abs(len(shed) - by_server),
        "answered_p50_ms": _percentile(answered, 50),
        "answered_p99_ms": _percentile(answered, 99),
        "shed_p50_ms": _percentile(shed, 50),
        "shed_p99_ms": _percentile(shed, 99),
        "next_ms": float(after.latency_ms[0]) if after.outcome[0] == "ok" else math.inf,
        "next_20_max_ms": float(after.latency_ms.max()),
        "generator_cpu_share": answers.cpu_s / answers.seconds,
    }


def summarize_bursts(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Bursts of one load as one: medians, all sheds, the worst answered p99 and next requests."""
    sums = ("shed", "shed_counted_by_server", "shed_miscounted")
    worst = ("answered_p99_ms", "next_ms", "next_20_max_ms")

    def merged(name: str) -> float:
        values: list[float] = [run[name] for run in runs]
        if name in sums:
            return sum(values)
        if name in worst:
            return max(values)
        # A burst in which nothing was shed has no latency of that.
        finite = [value for value in values if math.isfinite(value)]
        return float(np.median(finite)) if finite else math.inf

    return {name: merged(name) for name in runs[0]}


def overload_bars(result: dict[str, Any]) -> list[Bar]:
    """The bars of DESIGN's failure rules that the measured loads allow."""
    bursts = {burst["load"]: burst for burst in result["bursts"]}
    bars = []
    for load, share in ((4, 0.95), (10, 0.90)):
        if load in bursts:
            found = bursts[load]["of_capacity"]
            bars.append(Bar(f"good answers at {load}×, share of capacity", share, found, True))
    worst = max(burst["answered_p99_ms"] for burst in result["bursts"])
    bars.append(Bar("p99 of answered requests [ms]", result["deadline_ms"], worst, False))
    missed = max(burst["shed_miscounted"] for burst in result["bursts"])
    bars.append(Bar("sheds that client and server count differently", 0, missed, False))
    shed = [burst for burst in result["bursts"] if burst["shed"]]
    if shed:
        bars.append(Bar("shed p50 [ms]", 2, max(b["shed_p50_ms"] for b in shed), False))
        bars.append(Bar("shed p99 [ms]", 10, max(b["shed_p99_ms"] for b in shed), False))
    following = max(burst["next_ms"] for burst in result["bursts"])
    bars.append(Bar("next request over idle p99", 2, following / result["idle_p99_ms"], False))
    return bars


def overload_table(result: dict[str, Any]) -> str:
    """One row per burst, as markdown."""
    lines = [
        "| load | offered/s | good/s | of capacity | late/s | answered p50 ms | p99 ms | shed "
        "| counted by the server | shed p50 ms | p99 ms | next request ms | generator, cores |",
        "|---:" * 13 + "|",
    ]
    for b in result["bursts"]:
        lines.append(
            f"| {b['load']:g}× | {b['offered_per_s']:.0f} | {b['good_per_s']:.1f} | "
            f"{b['of_capacity']:.1%} | {b['late_per_s']:.2f} | "
            f"{b['answered_p50_ms']:.1f} | {b['answered_p99_ms']:.1f} | {b['shed']} | "
            f"{b['shed_counted_by_server']:.0f} | {b['shed_p50_ms']:.2f} | "
            f"{b['shed_p99_ms']:.2f} | {b['next_ms']:.1f} | {b['generator_cpu_share']:.2f} |"
        )
    return "\n".join(lines)


def _checked(answers: Answers) -> Answers:
    if answers.first_failure:
        failed = int((answers.outcome == "failed").sum())
        raise ServerError(f"[bench] {failed} requests failed, the first: {answers.first_failure}")
    return answers


def _percentile(values: np.ndarray[Any, Any], percent: float) -> float:
    # Of no answers at all the slowest is not fast.
    return float(np.percentile(values, percent)) if len(values) else math.inf
