"""Overloads recommenders whose work dominates: one with a wide ranker, one with a large catalog.

A small model would not show shedding on a small machine: at ten times its capacity, gRPC alone
takes more CPU than there is. Here one request is 10 to 20 ms of work on a core. A wide ranker takes
as long for each of a batch; a large catalog is read once for all, so that a full batch takes hardly
longer than a lone request.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from bench.serving import synthetic
from recengine.compile import compile_bundle
from recengine.serving.bench.commands import NUM_REQUESTS, run_overload
from recengine.serving.bench.overload import OverloadPlan
from recengine.serving.bench.requests import draw_requests

SIZES = {
    "overload": synthetic.Size(items=200_000, candidates=1000, hidden=(1024, 512)),
    "overload-catalog": synthetic.Size(items=3_000_000, candidates=100, hidden=(64, 32)),
}
"""What is served, by the name of the result."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("--name", choices=SIZES, action="append", help="default: all")
    parser.add_argument("--seconds", type=float, default=OverloadPlan.seconds)
    parser.add_argument("--rounds", type=int, default=OverloadPlan.rounds)
    parser.add_argument("--deadline-ms", type=float, default=OverloadPlan.deadline_ms)
    arguments = parser.parse_args()
    plan = OverloadPlan(
        seconds=arguments.seconds, rounds=arguments.rounds, deadline_ms=arguments.deadline_ms
    )
    for name in arguments.name or SIZES:
        overload(name, arguments.work / name, arguments.out, plan)


def overload(name: str, work: Path, out: Path, plan: OverloadPlan) -> None:
    size = SIZES[name]
    bundle, repository = work / "bundle", work / "model_repository"
    synthetic.write(bundle, size)
    shutil.rmtree(repository, ignore_errors=True)
    compile_bundle(bundle, repository)
    about = (
        f"Model: synthetic, {size.items:,} items of {size.dim} dimensions, {size.candidates} "
        f"candidates, ranker {size.hidden[0]}-{size.hidden[1]}."
    )
    requests = draw_requests(bundle, NUM_REQUESTS, "zipf")
    run_overload(repository, "recommend", requests, plan, out, about=about, name=name)


if __name__ == "__main__":
    main()
