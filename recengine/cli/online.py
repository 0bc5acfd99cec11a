"""Commands around a running server: serve, recommend, bench, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer.main import get_command

from recengine.cli import dataset

_OF_THE_WHEEL = (
    "this tritonserver is of the wheel nvidia-pytriton (24.10), for development and tests only: "
    "deadlines and cancellations of clients can leave it hung, though health checks pass "
    "(triton-inference-server/server#7368); production wants 26.06 or later"
)
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

Url = Annotated[str, typer.Option(help="host:port of the server's gRPC endpoint.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")]
Tritonserver = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="Server binary; else PATH, then the wheel's."),
]


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command()(serve)
    app.command()(recommend)
    app.command(context_settings=_PASS_ON, add_help_option=False)(bench)
    app.command()(doctor)


def serve(
    repository: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            help="After --: passed to tritonserver, as in -- --log-verbose=1.", show_default=False
        ),
    ] = None,
    tritonserver: Tritonserver = None,
    address: Annotated[str, typer.Option(help="What the endpoints bind to.")] = "127.0.0.1",
    grpc_port: Port = 8001,
    http_port: Port = 8000,
    metrics_port: Port = 8002,
    model_control: Annotated[
        Literal["none", "explicit"],
        typer.Option(
            help="explicit: whoever reaches an endpoint may have a model loaded anew, so that a "
            "version that compile adds goes live without a restart."
        ),
    ] = "none",
    ready_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds that each attempt to start may take.")
    ] = 60.0,
) -> None:
    """Serves a model repository with a real tritonserver until interrupted.

    A damaged newest version is renamed to failed-<version>, and the last good one served.

    With --model-control explicit, after `recengine compile`, ask for what is new; the server goes
    on answering while it loads: curl -X POST 127.0.0.1:8000/v2/repository/models/recommend/load
    """
    from recengine.serving.server import (
        STOP_SIGNALS,
        TritonServer,
        ending,
        find_tritonserver,
        wheel_tritonserver,
    )

    binary, wheel = find_tritonserver(tritonserver), wheel_tritonserver()
    if wheel is not None and binary.samefile(wheel):
        typer.echo(f"WARNING [serve] {_OF_THE_WHEEL}", err=True)
    server = TritonServer(
        repository,
        tritonserver=binary,
        address=address,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        model_control=model_control,
        load_models=["*"] if model_control == "explicit" else [],
        arguments=arguments or [],
        ready_timeout=ready_timeout,
    )
    with server:
        status = server.wait(lambda: typer.echo(f"ready: {server.endpoints}"))
    if status < 0 and -status not in STOP_SIGNALS:
        message = f"error: [serve] tritonserver {ending(status)}"
        typer.secho(message, fg=typer.colors.RED, err=True)
    raise typer.Exit(status if status >= 0 else 128 - status)


def recommend(
    user: Annotated[list[str], typer.Option(help="User id of the data set; repeatable.")],
    data: Annotated[
        Path, typer.Option(exists=True, help="The data set to look users up in.")
    ] = Path("data/ml-100k"),
    columns: dataset.ColumnNames = None,
    strings: dataset.StringColumns = None,
    users: dataset.UserTable = None,
    items: dataset.ItemTable = None,
    url: Url = "127.0.0.1:8001",
    k: Annotated[int | None, typer.Option("-k", help="Items per user.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 1.0,
) -> None:
    """Asks a running server for users of a data set and shows titles beside their history."""
    from recengine.cli import show
    from recengine.cli.catalog import Catalog
    from recengine.client import RecommenderClient

    catalog = Catalog(dataset.read(data, columns, strings, users, items))
    ids = [catalog.user_id(text) for text in user]
    with RecommenderClient(url, timeout=timeout) as client:
        answers = client.recommend(catalog.pack(client.schema, ids), k=k)
    for text, one, answer in zip(user, ids, answers, strict=True):
        show.recommendations(catalog, text, answer, catalog.history(one))


def bench(context: typer.Context) -> None:
    """Measures a served recommender: serving | overload (see `recengine bench --help`)."""
    from recengine.serving.bench import app

    code = get_command(app).main(context.args, prog_name="recengine bench", standalone_mode=False)
    raise typer.Exit(code if isinstance(code, int) else 0)


def doctor(tritonserver: Tritonserver = None) -> None:
    """Tells what this machine has for recengine; exits with 1 when something needed is missing."""
    from recengine.doctor import Level, examine

    marks = {
        Level.OK: typer.style("ok     ", fg=typer.colors.GREEN),
        Level.NOTE: typer.style("note   ", fg=typer.colors.YELLOW),
        Level.PROBLEM: typer.style("problem", fg=typer.colors.RED),
    }
    broken = False
    for finding in examine(tritonserver):
        typer.echo(f"{marks[finding.level]} {finding.name:<18} {finding.found}")
        broken |= finding.level is Level.PROBLEM
    raise typer.Exit(int(broken))
