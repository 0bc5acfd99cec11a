"""Overloads a recommender whose work dominates: a large synthetic catalog and a wide ranker.

A small model would not show shedding on a small machine: at ten times its capacity, gRPC alone
takes more CPU than there is. Here one request is about 10 ms of work on a core.
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

SIZE = synthetic.Size(items=200_000, candidates=1000, hidden=(1024, 512))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench/overload"))
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("--seconds", type=float, default=OverloadPlan.seconds)
    parser.add_argument("--rounds", type=int, default=OverloadPlan.rounds)
    parser.add_argument("--deadline-ms", type=float, default=OverloadPlan.deadline_ms)
    arguments = parser.parse_args()
    bundle, repository = arguments.work / "bundle", arguments.work / "model_repository"
    synthetic.write(bundle, SIZE)
    shutil.rmtree(repository, ignore_errors=True)
    compile_bundle(bundle, repository)
    plan = OverloadPlan(
        seconds=arguments.seconds, rounds=arguments.rounds, deadline_ms=arguments.deadline_ms
    )
    about = (
        f"Model: synthetic, {SIZE.items:,} items of {SIZE.dim} dimensions, {SIZE.candidates} "
        f"candidates, ranker {SIZE.hidden[0]}-{SIZE.hidden[1]}."
    )
    run_overload(
        repository,
        "recommend",
        draw_requests(bundle, NUM_REQUESTS, "zipf"),
        plan,
        arguments.out,
        about=about,
    )


if __name__ == "__main__":
    main()
