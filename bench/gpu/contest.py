"""Contenders that put the same work on a GPU, timed in turns."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bench.ops import contest
from bench.ops.contest import OURS, quartiles

MOST_CALLS = 1000  # back to back
MOST_SAMPLES = 20  # of a turn


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to do the i-th piece of work of a pool, and to wait for what it returned."""

    run: Callable[[int], Any]
    wait: Callable[[Any], object]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long a contender is timed: `rounds` turns of `blocks` blocks of about `seconds`.

    As long for single calls. Slow calls are timed less often, but not less than twice a turn.
    """

    rounds: int = 3
    blocks: int = 5
    seconds: float = 0.02


@dataclasses.dataclass(frozen=True)
class Times:
    """Of a call back to back, and of a single one."""

    queued: contest.Times
    single: contest.Times


def race(contenders: Mapping[str, Contender], pool: int, plan: Plan) -> dict[str, Times]:
    """Times every contender over the same pool of work; the turns are in random order."""
    order = random.Random(0)
    queued: dict[str, list[float]] = {name: [] for name in contenders}
    single: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(plan.rounds):
        for name in order.sample(list(contenders), len(contenders)):
            contender = contenders[name]
            _seconds(contender, pool, 2)  # warms up
            alone = _samples(contender, pool, 1, plan)
            calls = int(np.clip(plan.seconds / np.median(alone), 1, MOST_CALLS))
            single[name] += alone
            queued[name] += _samples(contender, pool, calls, plan)
    return {name: Times(quartiles(queued[name]), quartiles(single[name])) for name in contenders}


def without_failing(
    contenders: Mapping[str, Contender],
) -> tuple[dict[str, Contender], dict[str, str]]:
    """The contenders whose first call returns, ours in any case; and why the others' did not."""
    able, failed = {}, {}
    for name, contender in contenders.items():
        try:
            contender.wait(contender.run(0))
        except (RuntimeError, TypeError) as error:  # no memory, or an older version
            if name == OURS:
                raise
            failed[name] = str(error).strip().partition("\n")[0]
            continue
        able[name] = contender
    return able, failed


def times_json(times: Mapping[str, Times]) -> dict[str, Any]:
    """As JSON values; contenders are compared back to back."""
    single = contest.times_json({name: value.single for name, value in times.items()})
    return {
        **contest.times_json({name: value.queued for name, value in times.items()}),
        "single_ms": single["ms"],
        "single_quartiles_ms": single["quartiles_ms"],
    }


def _samples(contender: Contender, pool: int, calls: int, plan: Plan) -> list[float]:
    """Seconds of a call, by block of so many calls."""
    taken: list[float] = []
    end = time.perf_counter() + plan.blocks * plan.seconds
    while len(taken) < 2 or (len(taken) < MOST_SAMPLES and time.perf_counter() < end):
        taken.append(_seconds(contender, pool, calls) / calls)
    return taken


def _seconds(contender: Contender, pool: int, calls: int) -> float:
    """Of so many calls, one after the other; the last is waited for."""
    start = time.perf_counter()
    for call in range(calls):
        result = contender.run(call % pool)
    contender.wait(result)
    return time.perf_counter() - start
