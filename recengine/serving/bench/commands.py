"""`recengine bench serving` and `recengine bench overload`."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from recengine.bundle import latest_version
from recengine.errors import InputError
from recengine.serving.bench.closed_loop import Contender, Load, Series, measure_rounds
from recengine.serving.bench.machine import describe_machine, describe_versions, machine_name
from recengine.serving.bench.overload import (
    OverloadPlan,
    measure_overload,
    on_cores,
    overload_bars,
    overload_table,
    split_cores,
)
from recengine.serving.bench.perf_analyzer import Windows, find_perf_analyzer
from recengine.serving.bench.report import (
    Bar,
    plot_overload,
    plot_serving,
    series_json,
    serving_table,
    write_result,
)
from recengine.serving.bench.requests import (
    ZIPF_EXPONENT,
    Distribution,
    draw_requests,
    write_input_data,
)
from recengine.serving.server import TritonServer

CONCURRENCY = (1, 4, 16, 64)
QUICK_CONCURRENCY = (1, 16)
QUICK_WINDOW_MS = 500
NUM_REQUESTS = 256

app = typer.Typer(
    help="Measure a served model repository.", no_args_is_help=True, add_completion=False
)

RepositoryOption = Annotated[Path, typer.Option(help="Compiled model repository.")]
BundleOption = Annotated[
    Path | None,
    typer.Option(help="Bundle that the requests are drawn from. [default: what is served]"),
]
OutOption = Annotated[Path, typer.Option(help="Folder for the results.")]
DistributionOption = Annotated[
    str,
    typer.Option(
        help=f"zipf ({ZIPF_EXPONENT}), uniform, or reference: the held-out users as they are."
    ),
]
TritonserverOption = Annotated[
    Path | None, typer.Option(help="The server to run. [default: PATH, else nvidia-pytriton's]")
]


@app.command()
def serving(
    repository: RepositoryOption = Path("model_repository"),
    bundle: BundleOption = None,
    out: OutOption = Path("bench/results"),
    distribution: DistributionOption = "zipf",
    url: Annotated[
        str | None, typer.Option(help="gRPC address of a running server, instead of starting one.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="Models to load.")] = None,
    concurrency: Annotated[list[int] | None, typer.Option(help="Requests in flight.")] = None,
    rounds: Annotated[int, typer.Option(help="Repetitions; medians are reported.")] = 3,
    window_ms: Annotated[int, typer.Option(help="One perf_analyzer window; three a point.")] = 2000,
    quick: Annotated[
        bool, typer.Option("--quick", help="One short round; prints the table, writes nothing.")
    ] = False,
    perf_analyzer: Annotated[
        Path | None, typer.Option(help="The binary. [default: PATH, else the virtual environment]")
    ] = None,
    tritonserver: TritonserverOption = None,
) -> None:
    """Closed loop with NVIDIA's perf_analyzer: throughput and latency by concurrency."""
    levels = tuple(concurrency or (QUICK_CONCURRENCY if quick else CONCURRENCY))
    windows = Windows(QUICK_WINDOW_MS if quick else window_ms)
    rounds = 1 if quick else rounds
    with tempfile.TemporaryDirectory() as folder:
        data, log = Path(folder) / "requests.json", Path(folder) / "server.log"
        source = bundle or latest_version(repository / "retrieval")
        write_input_data(data, draw_requests(source, NUM_REQUESTS, _distribution(distribution)))
        series = measure_rounds(
            [
                Contender(
                    lambda: served(repository, url, tritonserver, log),
                    [Load(name, name, data) for name in model or ("recommend", "retrieval")],
                )
            ],
            find_perf_analyzer(perf_analyzer),
            levels,
            windows,
            rounds,
            _ignore if quick else typer.echo,
        )
    if quick:
        typer.echo(serving_table(series))
        return
    settings = {"distribution": distribution, "rounds": rounds, "window_ms": window_ms}
    write_serving(out, series, settings)


@app.command()
def overload(
    repository: RepositoryOption = Path("model_repository"),
    bundle: BundleOption = None,
    out: OutOption = Path("bench/results"),
    distribution: DistributionOption = "zipf",
    model: Annotated[str, typer.Option(help="The model to ask.")] = "recommend",
    load: Annotated[list[float] | None, typer.Option(help="Multiples of capacity.")] = None,
    seconds: Annotated[float, typer.Option(help="Length of each burst.")] = OverloadPlan.seconds,
    rounds: Annotated[
        int, typer.Option(min=1, help="Bursts of each load; medians are reported.")
    ] = OverloadPlan.rounds,
    deadline_ms: Annotated[
        float, typer.Option(help="An answer within it is a good one.")
    ] = OverloadPlan.deadline_ms,
    tritonserver: TritonserverOption = None,
) -> None:
    """Open loop above capacity: how much is still answered in time, and what shedding costs.

    Half of the cores serve, the other half generate the load.
    """
    plan = OverloadPlan(tuple(load or OverloadPlan.loads), seconds, rounds, deadline_ms)
    source = bundle or latest_version(repository / "retrieval")
    requests = draw_requests(source, NUM_REQUESTS, _distribution(distribution))
    run_overload(repository, model, requests, plan, out, tritonserver)


def run_overload(
    repository: Path,
    model: str,
    requests: Sequence[Any],
    plan: OverloadPlan,
    out: Path,
    tritonserver: Path | None = None,
    about: str = "",
    name: str = "overload",
    cores: tuple[set[int], set[int]] | None = None,
) -> None:
    """Serves `repository` on some cores, overloads `model` from others.

    Args:
        repository: compiled model repository.
        model: the model to ask.
        requests: taken in a circle.
        plan: what to offer.
        out: folder for <name>-<machine>.{json,md,png}.
        tritonserver: the server to run; None: see `find_tritonserver`.
        about: what is served, for the report.
        name: of the result.
        cores: of the server and of the load generator; None: half of them each.
    """
    server_cores, generator_cores = cores or split_cores()
    with tempfile.TemporaryDirectory() as folder:
        server = TritonServer(repository, tritonserver=tritonserver, log=Path(folder) / "log")
        with on_cores(server_cores):
            server.start()
        try:
            with on_cores(generator_cores):
                endpoints = server.endpoints
                result = measure_overload(
                    endpoints.grpc, endpoints.metrics, model, requests, plan, typer.echo
                )
        finally:
            server.stop()
    bars = overload_bars(result)
    result = {
        **provenance(),
        "about": about,
        "server_cores": sorted(server_cores),
        "generator_cores": sorted(generator_cores),
        **result,
    }
    path = out / f"{name}-{machine_name()}"
    write_result(
        path,
        "Overload",
        result,
        [
            f"Open loop, Poisson arrivals; medians of {plan.rounds} bursts of {plan.seconds:g} s a "
            f"load, before each its capacity (median {result['capacity']:.1f}/s). Good: answered "
            f"within {plan.deadline_ms:g} ms of being due. "
            f"Idle p50 {result['idle_p50_ms']:.1f} ms, p99 {result['idle_p99_ms']:.1f} ms. "
            f"Server on cores {result['server_cores']}, "
            f"load generator on cores {result['generator_cores']}. "
            f"{about}",
            overload_table(result),
        ],
        bars,
    )
    plot_overload(path.with_suffix(".png"), result["bursts"], result)
    for bar in bars:
        typer.echo(str(bar))
    typer.echo(f"wrote {path}.json, .md, .png")


def write_serving(
    out: Path,
    series: Series,
    settings: dict[str, Any],
    measured: dict[str, Any] | None = None,
    text: str = "",
    bars: Sequence[Bar] = (),
    tables: Sequence[str] = (),
    name: str = "serving",
) -> None:
    """Writes <name>-<machine>.{json,md,png} and prints the bars.

    Args:
        out: folder.
        series: what was measured.
        settings: how, for the record.
        measured: what else was measured, as JSON values.
        text: a paragraph of the page.
        bars: what was promised.
        tables: of the page, before that of the series.
        name: of the bench.
    """
    values = {"settings": settings, "series": series_json(series), **(measured or {})}
    result = {**provenance(), **values}
    title, table = name.capitalize(), serving_table(series)
    how = (
        "Closed loop, perf_analyzer over gRPC on the same machine as the server; latency is the "
        f"client's. {', '.join(f'{key} {value}' for key, value in settings.items())}."
    )
    path = out / f"{name}-{machine_name()}"
    write_result(path, title, result, [how, text], bars, [*tables, table])
    plot_serving(path.with_suffix(".png"), series, f"{title} on {result['machine']['cpu']}")
    typer.echo(table)
    typer.echo(f"wrote {path}.json, .md, .png")
    for bar in bars:
        typer.echo(str(bar))


@contextmanager
def served(
    repository: Path, url: str | None, tritonserver: Path | None, log: Path
) -> Iterator[str]:
    """The gRPC address of `url`, or of a server over `repository` that ends on exit."""
    if url is not None:
        yield url
        return
    with TritonServer(repository, tritonserver=tritonserver, log=log) as server:
        yield server.endpoints.grpc


def provenance(packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """Where a result comes from: machine, versions (of `packages`, too) and command line."""
    return {
        "machine": describe_machine(),
        "versions": describe_versions(packages),
        "command": shlex.join(["python", *_command()]),
    }


def _command() -> list[str]:
    """The command line, a module by its name."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return ["-m", spec.name, *sys.argv[1:]] if spec else sys.argv


def _distribution(name: str) -> Distribution:
    for known in get_args(Distribution):
        if name == known:
            return cast(Distribution, known)
    raise InputError(f"[bench] distribution: expected zipf, uniform or reference, found {name!r}")


def _ignore(line: str) -> None:
    """Takes the progress of a quick run."""
