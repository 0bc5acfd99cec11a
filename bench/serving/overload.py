"""Overloads recommenders whose work dominates: with a wide ranker, with large catalogs.

A small model would not show shedding on a small machine: at ten times its capacity, gRPC alone
takes more CPU than there is. Here one request is 10 to 50 ms of work on a core. A wide ranker takes
as long for each of a batch; a large catalog is read once for all, so that a full batch takes hardly
longer than a lone request. Server and load generator have half of the cores each; the largest
catalog is searched by as many threads as there are cores, and its few requests are sent from
whichever is free.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from bench.serving import synthetic
from recengine.compile import compile_bundle
from recengine.serving.bench.commands import NUM_REQUESTS, run_overload
from recengine.serving.bench.overload import OverloadPlan
from recengine.serving.bench.requests import draw_requests


@dataclass(frozen=True)
class Case:
    """What is overloaded.

    Attributes:
        size: of what is served.
        deadline_ms: of the requests.
        on_all_cores: server and load generator share all cores.
    """

    size: synthetic.Size
    deadline_ms: float = OverloadPlan.deadline_ms
    on_all_cores: bool = False


CASES = {
    "overload": Case(synthetic.Size(items=200_000, candidates=1000, hidden=(1024, 512))),
    "overload-catalog": Case(synthetic.Size(items=3_000_000, candidates=100, hidden=(64, 32))),
    "overload-threads": Case(
        synthetic.Size(items=12_000_000, candidates=100, hidden=(64, 32)), 150, on_all_cores=True
    ),
}
"""By the name of the result."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("--name", choices=CASES, action="append", help="default: all")
    parser.add_argument("--seconds", type=float, default=OverloadPlan.seconds)
    parser.add_argument("--rounds", type=int, default=OverloadPlan.rounds)
    arguments = parser.parse_args()
    plan = OverloadPlan(seconds=arguments.seconds, rounds=arguments.rounds)
    for name in arguments.name or CASES:
        overload(name, arguments.work / name, arguments.out, plan)


def overload(name: str, work: Path, out: Path, plan: OverloadPlan) -> None:
    case = CASES[name]
    size = case.size
    bundle, repository = work / "bundle", work / "model_repository"
    synthetic.write(bundle, size)
    shutil.rmtree(repository, ignore_errors=True)
    compile_bundle(bundle, repository)
    about = (
        f"Model: synthetic, {size.items:,} items of {size.dim} dimensions, {size.candidates} "
        f"candidates, ranker {size.hidden[0]}-{size.hidden[1]}."
    )
    requests = draw_requests(bundle, NUM_REQUESTS, "zipf")
    plan = replace(plan, deadline_ms=case.deadline_ms)
    every_core = os.sched_getaffinity(0)
    cores = (every_core, every_core) if case.on_all_cores else None
    run_overload(repository, "recommend", requests, plan, out, about=about, name=name, cores=cores)


if __name__ == "__main__":
    main()
