"""Serves the same models with recengine and with the peer, in one run, and states the ratios.

Before anything is timed, both answer every held-out user and the answers are compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferenceServerClient, InferInput

from bench.serving import identity
from bench.serving.peer import repository as peer
from recengine.bundle import read_manifest
from recengine.errors import ServerError
from recengine.serving.bench.closed_loop import Contender, Load, Series, measure_rounds
from recengine.serving.bench.commands import CONCURRENCY, NUM_REQUESTS, served, write_serving
from recengine.serving.bench.machine import describe_versions
from recengine.serving.bench.perf_analyzer import LoadPoint, Windows, find_perf_analyzer
from recengine.serving.bench.report import Bar
from recengine.serving.bench.requests import (
    Request,
    draw_requests,
    reference_requests,
    write_input_data,
)
from recengine.serving.server import TritonServer, find_backends

SCORE_TOLERANCE = 1e-4
PEER_PACKAGES = ("faiss-cpu", "onnxruntime", "torch")


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far two servers' answers to the same users are apart.

    Attributes:
        users: compared.
        identical: share of users with the same items in the same order.
        same: share with the same items in the same order, swaps of scores within the tolerance
            aside.
        score_error: largest difference of two scores at the same place.
    """

    users: int
    identical: float
    same: float
    score_error: float


Answers = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]


def ask(url: str, model: str, requests: Sequence[Request]) -> Answers:
    """Item ids and scores [users, k] of requests sent one by one."""
    items, scores = [], []
    with InferenceServerClient(url) as client:
        for request in requests:
            inputs = [
                InferInput(name, [1, *array.shape], kind).set_data_from_numpy(array[None])
                for name, kind, array in request.tensors()
            ]
            answer = client.infer(model, inputs)
            items.append(answer.as_numpy("item_ids")[0])
            scores.append(answer.as_numpy("scores")[0])
    return np.stack(items), np.stack(scores)


def compare_answers(ours: Answers, theirs: Answers) -> Agreement:
    """Places that differ count as the same when the scores there are within the tolerance."""
    (our_items, our_scores), (their_items, their_scores) = ours, theirs
    with np.errstate(invalid="ignore"):
        apart = np.abs(our_scores - their_scores)
    apart = np.where((our_items == -1) & (their_items == -1), 0, apart)
    identical = (our_items == their_items).all(axis=1)
    same = identical | (apart <= SCORE_TOLERANCE).all(axis=1)
    return Agreement(len(same), float(identical.mean()), float(same.mean()), float(apart.max()))


def ratio_bars(series: Series) -> list[Bar]:
    """The bars of recengine against the peer."""

    def at(label: str, concurrency: int) -> LoadPoint:
        return next(p for p in series[label] if p.concurrency == concurrency)

    ours, theirs = "recommend", "peer recommend"
    rate = at(ours, 16).throughput / at(theirs, 16).throughput
    p50 = at(ours, 1).p50_us / at(theirs, 1).p50_us
    p99 = at(ours, 16).p99_us / at(theirs, 16).p99_us
    return [
        Bar("throughput at concurrency 16, over the peer's", 5, rate, at_least=True),
        Bar("p50 at concurrency 1, over the peer's", 1 / 2, p50, at_least=False),
        Bar("p99 at concurrency 16, over the peer's", 1 / 3, p99, at_least=False),
    ]


@contextmanager
def serve_peer(folder: Path, log: Path) -> Iterator[str]:
    """The gRPC address of a tritonserver over the peer's repository in `folder`."""
    with peer.environment(folder / "venv"):
        server = TritonServer(folder / "models", backend_directory=folder / "backends", log=log)
        server.start()
    try:
        yield server.endpoints.grpc
    finally:
        server.stop()


def prepare_peer(folder: Path, bundle: Path, tuning: peer.Tuning) -> None:
    """Puts models, backends and environment of the peer into `folder`."""
    peer.write_repository(folder / "models", bundle, tuning)
    backends = peer.copy_backend(folder / "backends")
    link = backends / "recengine"
    link.unlink(missing_ok=True)
    # TritonServer wants a backend directory in which recengine's own is, too.
    link.symlink_to(find_backends() / "recengine")
    peer.make_environment(folder / "venv")


def check_agreement(ours: Contender, theirs: Contender, requests: Sequence[Request]) -> Agreement:
    """Asks both servers for every request.

    Raises:
        ServerError: less than 99.5 % of the users get the same answer.
    """
    with ours.serve() as url:
        our_answers = ask(url, "recommend", requests)
    with theirs.serve() as url:
        their_answers = ask(url, "recommend", requests)
    agreement = compare_answers(our_answers, their_answers)
    print(
        f"{agreement.users} users: {agreement.identical:.2%} identical, {agreement.same:.2%} up to "
        f"near ties, largest score difference {agreement.score_error:.1e}"
    )
    if agreement.same < 0.995:
        raise ServerError(f"[bench] recengine and the peer disagree: {agreement}")
    return agreement


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--repository", type=Path, required=True, help="compiled from the bundle")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="of floor and peer")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("--distribution", choices=("reference", "zipf", "uniform"), default="zipf")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--window-ms", type=int, default=2000)
    parser.add_argument("--peer-instances", type=int, default=peer.Tuning.instances)
    parser.add_argument("--peer-threads", type=int, default=peer.Tuning.threads)
    parser.add_argument("--peer-queue-delay-us", type=int, default=peer.Tuning.queue_delay_us)
    arguments = parser.parse_args()
    bundle, work = arguments.bundle, arguments.work
    tuning = peer.Tuning(
        instances=arguments.peer_instances,
        threads=arguments.peer_threads,
        queue_delay_us=arguments.peer_queue_delay_us,
    )
    prepare_peer(work / "peer", bundle, tuning)
    floor = identity.write_repository(work / "floor")
    with tempfile.TemporaryDirectory() as folder:
        data, floor_data = Path(folder) / "requests.json", Path(folder) / "floor.json"
        write_input_data(data, draw_requests(bundle, NUM_REQUESTS, arguments.distribution))
        identity.write_input_data(floor_data)
        ours = Contender(
            lambda: served(arguments.repository, None, None, work / "recengine.log"),
            [Load("recommend", "recommend", data), Load("retrieval", "retrieval", data)],
        )
        theirs = Contender(
            lambda: serve_peer(work / "peer", work / "peer.log"),
            [Load("peer recommend", "recommend", data)],
        )
        nothing = Contender(
            lambda: served(floor, None, None, work / "floor.log"),
            [
                Load("identity", identity.MODEL, floor_data),
                Load("two identities", identity.ENSEMBLE, floor_data),
            ],
        )
        agreement = None
        if read_manifest(bundle).reference is not None:
            agreement = check_agreement(ours, theirs, reference_requests(bundle))
        series = measure_rounds(
            [ours, theirs, nothing],
            find_perf_analyzer(),
            CONCURRENCY,
            Windows(arguments.window_ms),
            arguments.rounds,
        )
    compared = (
        ""
        if agreement is None
        else (
            f"Both answered {agreement.users} held-out users before: {agreement.identical:.2%} "
            f"identical lists, {agreement.same:.2%} up to near ties, largest score difference "
            f"{agreement.score_error:.1e}."
        )
    )
    write_serving(
        arguments.out,
        series,
        {
            "distribution": arguments.distribution,
            "rounds": arguments.rounds,
            "window_ms": arguments.window_ms,
        },
        {
            "peer": {
                "tuning": dataclasses.asdict(tuning),
                "versions": describe_versions(PEER_PACKAGES),
                "numpy": peer.NUMPY,
            },
            "agreement": None if agreement is None else dataclasses.asdict(agreement),
        },
        text=compared,
        bars=ratio_bars(series),
    )


if __name__ == "__main__":
    main()
