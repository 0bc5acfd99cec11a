"""Commands from data to model repository: train, evaluate, export, compile."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer


class Target(str, enum.Enum):
    """What a bundle can be compiled for."""

    CPU = "cpu"


Data = Annotated[
    Path, typer.Argument(exists=True, help="Folder or file of interactions (docs: recengine.data).")
]
Checkpoint = Annotated[Path, typer.Argument(exists=True, file_okay=False)]
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
) -> None:
    """Trains retrieval and ranking on a data set and prints their quality beside baselines."""


def evaluate() -> None:
    """Filled in once training is there."""


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
    target: Annotated[Target, typer.Option(help="What to compile for.")] = Target.CPU,
) -> None:
    """Compiles a bundle into a Triton model repository, behind the fidelity gate."""
    from recengine.bundle import latest_version, read_manifest
    from recengine.cli import show
    from recengine.compile import STAGES, compile_bundle

    repository = compile_bundle(bundle, out, target=target.value)
    manifests = [read_manifest(latest_version(repository / stage)) for stage in STAGES]
    show.fidelity(row for manifest in manifests for row in manifest.fidelity)
    typer.echo(f"model repository: {repository}")
