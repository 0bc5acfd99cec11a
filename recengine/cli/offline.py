"""Commands from data to model repository: train, evaluate, export, compile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from recengine.cli import dataset

Data = Annotated[
    Path, typer.Argument(exists=True, help="Folder or file of interactions (docs: recengine.data).")
]
Checkpoint = Annotated[Path, typer.Argument(exists=True, file_okay=False)]
_PLANS = "Plans of the target gpu"
_Precision = Literal["fp32", "fp16", "bf16", "int8"]
Seed = Annotated[int, typer.Option(help="Of every random choice.")]


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    for command in (train, evaluate, export):
        app.command()(command)
    app.command("compile")(compile_)


def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Directory of the checkpoint.")] = Path("checkpoint"),
    seed: Seed = 0,
    max_epochs: Annotated[int, typer.Option(min=1, help="Epochs of each model, at most.")] = 30,
    columns: dataset.ColumnNames = None,
    strings: dataset.StringColumns = None,
    users: dataset.UserTable = None,
    items: dataset.ItemTable = None,
    split: dataset.SplitName = "leave-last-out",
) -> None:
    """Trains retrieval and ranking on a data set and prints their quality beside baselines."""
    from recengine.cli import show
    from recengine.training.train import train as fit

    divide = dataset.splitter(split)
    learned = dataset.read(data, columns, strings, users, items)
    parts = divide(learned)
    quality = fit(learned, out, split=parts, seed=seed, max_epochs=max_epochs)
    show.quality(learned.name, parts.name, ((row.method, row.metrics) for row in quality))
    typer.echo(f"checkpoint: {out}")


def evaluate(
    path: Annotated[
        Path,
        typer.Argument(
            exists=True, file_okay=False, help="A checkpoint, a bundle or a repository."
        ),
    ],
    url: Annotated[
        str | None, typer.Option(help="host:port of a server to ask for the held-out users.")
    ] = None,
    precision: Annotated[
        _Precision | None,
        typer.Option(help="Of the graphs that the server runs, for a bundle; fp32 unless given."),
    ] = None,
) -> None:
    """Shows quality on held-out users and, with --url, how the served answers compare."""
    from recengine.bundle import MANIFEST
    from recengine.cli import evaluation

    is_bundle = (path / MANIFEST).exists()
    if precision is not None and not (is_bundle and url):
        raise typer.BadParameter("only a bundle with --url takes --precision")
    if is_bundle:
        evaluation.of_bundle(path, url, precision)
    elif (path / "retrieval").is_dir():
        evaluation.of_repository(path, url)
    else:
        evaluation.of_checkpoint(path)


def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="Directory of the bundle.")] = Path("bundle"),
) -> None:
    """Writes a checkpoint as a framework-free bundle."""
    from recengine.export import export as write

    write(checkpoint, out)
    typer.echo(f"bundle: {out}")


def compile_(
    bundle: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="The Triton model repository.")] = Path(
        "model_repository"
    ),
    target: Annotated[
        Literal["cpu", "onnxruntime", "gpu"], typer.Option(help="What to compile for.")
    ] = "cpu",
    max_batch: Annotated[
        int, typer.Option(min=1, help="Most users that run together, and of a request.")
    ] = 64,
    change_schema: Annotated[
        bool,
        typer.Option(
            "--change-schema",
            help="Take a bundle whose requests are not those of the newest version.",
        ),
    ] = False,
    precision: Annotated[
        _Precision | None,
        typer.Option(help="gpu: of matrix products; fp32 unless given.", rich_help_panel=_PLANS),
    ] = None,
    usual_batch: Annotated[
        int | None,
        typer.Option(min=1, help="gpu: batch that kernels are chosen for.", rich_help_panel=_PLANS),
    ] = None,
    usual_candidates: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="gpu: candidates that kernels are chosen for and CUDA graphs captured.",
            rich_help_panel=_PLANS,
        ),
    ] = None,
    workspace_mib: Annotated[
        int | None,
        typer.Option(min=1, help="gpu: scratch memory of one kernel.", rich_help_panel=_PLANS),
    ] = None,
    optimization_level: Annotated[
        int | None,
        typer.Option(min=0, max=5, help="gpu: 5 builds longest.", rich_help_panel=_PLANS),
    ] = None,
    tf32: Annotated[
        bool, typer.Option("--tf32", help="gpu: fp32 products in TF32.", rich_help_panel=_PLANS)
    ] = False,
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible",
            help="gpu: plans also run with later TensorRT versions.",
            rich_help_panel=_PLANS,
        ),
    ] = False,
    hardware_compatibility: Annotated[
        Literal["none", "same_compute_capability", "ampere_plus"] | None,
        typer.Option(help="gpu: other GPUs that plans run on.", rich_help_panel=_PLANS),
    ] = None,
) -> None:
    """Compiles a bundle into a Triton model repository, behind the fidelity gate.

    A bundle with other features, in another order, or other string keys than the newest version is
    refused: clients of that version would fail, and it could not be served again. If this is meant,
    say --change-schema.
    """
    from recengine.cli import evaluation
    from recengine.compile import compile_bundle
    from recengine.compile.tensorrt import PlanOptions

    given: dict[str, Any] = {
        "precision": precision,
        "usual_batch": usual_batch,
        "usual_candidates": usual_candidates,
        "workspace_bytes": workspace_mib and workspace_mib << 20,
        "optimization_level": optimization_level,
        "tf32": tf32 or None,
        "version_compatible": version_compatible or None,
        "hardware_compatibility": hardware_compatibility,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if given and target != "gpu":
        options = (f"--{name.replace('_', '-').replace('bytes', 'mib')}" for name in given)
        raise typer.BadParameter(f"only the target gpu takes {', '.join(options)}")
    repository = compile_bundle(
        bundle,
        out,
        target=target,
        max_batch=max_batch,
        change_schema=change_schema,
        plans=PlanOptions(**given),
        progress=lambda line: typer.echo(line, err=True),
    )
    evaluation.of_repository(repository, None)
    typer.echo(f"model repository: {repository}")
    if target != "cpu":
        from recengine.serving.backends import container_command
        from recengine.serving.server import find_backends

        command = container_command(repository, find_backends(), gpu=target == "gpu")
        typer.echo(f"serve it where the stock backends are: {command}")
