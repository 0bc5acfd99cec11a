"""Drives NVIDIA's perf_analyzer: finds it, runs one point of load, reads its report."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from recengine.errors import InputError, ServerError

_HEADERS = ("Concurrency,", "Request Rate,")
_SERVER_COLUMNS = {
    "queue_us": "Server Queue",
    "compute_input_us": "Server Compute Input",
    "compute_infer_us": "Server Compute Infer",
    "compute_output_us": "Server Compute Output",
}


@dataclasses.dataclass(frozen=True)
class LoadPoint:
    """What perf_analyzer measured at one load. Latencies in microseconds, client side.

    Attributes:
        concurrency: requests kept in flight; 0 where they were sent at a rate.
        throughput: answers per second.
        mean_us, p50_us, p90_us, p95_us, p99_us: latency from send to answer.
        queue_us, compute_input_us, compute_infer_us, compute_output_us: mean times inside the
            server; of an ensemble: sums over its models.
    """

    concurrency: int
    throughput: float
    mean_us: float
    p50_us: float
    p90_us: float
    p95_us: float
    p99_us: float
    queue_us: float
    compute_input_us: float
    compute_infer_us: float
    compute_output_us: float


@dataclasses.dataclass(frozen=True)
class Windows:
    """How long perf_analyzer measures: `count` windows of `milliseconds`, percentiles over all."""

    milliseconds: int = 2000
    count: int = 3


def find_perf_analyzer(path: Path | None = None) -> Path:
    """The perf_analyzer to run: `path`, else PATH, else <venv>/perf_analyzer/perf_analyzer.

    Raises:
        InputError: there is none; the message says how to get it.
    """
    if path is not None:
        if not path.is_file():
            raise InputError(f"[perf_analyzer] {path}: no such file")
        return path
    on_path = shutil.which("perf_analyzer")
    if on_path is not None:
        return Path(on_path)
    local = Path(sys.prefix) / "perf_analyzer" / "perf_analyzer"
    if local.is_file():
        return local
    raise InputError(
        "[perf_analyzer] not on PATH and not in the virtual environment; "
        "run `python bench/serving/setup_perf_analyzer.py` or pass --perf-analyzer"
    )


def measure(
    binary: Path, url: str, model: str, input_data: Path | str, concurrency: int, windows: Windows
) -> LoadPoint:
    """Closed loop: keeps `concurrency` requests in flight.

    Raises:
        ServerError: perf_analyzer failed; the message ends with what it said.
    """
    load = ["--concurrency-range", str(concurrency)]
    return _run(binary, url, model, input_data, load, windows)


def measure_rate(
    binary: Path, url: str, model: str, input_data: Path | str, rate: float, windows: Windows
) -> LoadPoint:
    """Open loop: sends `rate` requests per second, Poisson, whatever comes back.

    Raises:
        ServerError: perf_analyzer failed; the message ends with what it said.
    """
    load = ["--request-rate-range", f"{rate:.1f}", "--request-distribution", "poisson"]
    return _run(binary, url, model, input_data, load, windows)


def _run(
    binary: Path,
    url: str,
    model: str,
    input_data: Path | str,
    load: Sequence[str],
    windows: Windows,
) -> LoadPoint:
    """One point over gRPC, always exactly `windows.count` windows.

    One thread sends and receives for all connections: on the server's own machine, perf_analyzer's
    default of several threads takes a fifth of the cores from the server.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.csv"
        line = [
            *[str(binary), "-m", model, "-u", url, "-i", "grpc"],
            *["--input-data", str(input_data), *load],
            *["--measurement-interval", str(windows.milliseconds)],
            *["--async", "--max-threads", "1"],
            *["--stability-percentage", "999", "--max-trials", str(windows.count)],
            *["--verbose-csv", "-f", str(report)],
        ]
        limit_s = 60 + 10 * windows.count * windows.milliseconds / 1000
        done = subprocess.run(
            line, env=_environment(binary), capture_output=True, text=True, timeout=limit_s
        )
        if done.returncode != 0 or not report.is_file():
            said = (done.stdout + done.stderr).strip()[-800:]
            raise ServerError(f"[perf_analyzer] {model} at {load[1]}: {said}")
        (point,) = read_report(report.read_text())
    return point


def read_report(text: str) -> list[LoadPoint]:
    """Reads the CSV that `perf_analyzer -f` writes; rows of an ensemble's models are left out."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith(_HEADERS)), None)
    if start is None:
        raise ServerError(f"[perf_analyzer] no line starts with {_HEADERS[0]!r} in its report")
    block = lines[start:]
    end = next((i for i, line in enumerate(block) if not line.strip()), len(block))
    return [_point(row) for row in csv.DictReader(block[:end])]


def _point(row: dict[str, str]) -> LoadPoint:
    percentiles = {f"p{p}_us": float(row[f"p{p} latency"]) for p in (50, 90, 95, 99)}
    server = {name: float(row.get(column) or 0) for name, column in _SERVER_COLUMNS.items()}
    return LoadPoint(
        concurrency=int(row.get("Concurrency") or 0),
        throughput=float(row["Inferences/Second"]),
        mean_us=float(row["Avg latency"]),
        **percentiles,
        **server,
    )


def median_point(points: Sequence[LoadPoint]) -> LoadPoint:
    """The median of each number over repeated measurements of one concurrency."""
    columns = [sorted(values) for values in zip(*map(dataclasses.astuple, points), strict=True)]
    middle, odd = divmod(len(points), 2)
    medians = [c[middle] if odd else (c[middle - 1] + c[middle]) / 2 for c in columns]
    return LoadPoint(int(medians[0]), *medians[1:])


def _environment(binary: Path) -> dict[str, str]:
    """Libraries that the set-up put beside the binary are found there."""
    paths = [str(binary.parent), os.environ.get("LD_LIBRARY_PATH", "")]
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths))}
