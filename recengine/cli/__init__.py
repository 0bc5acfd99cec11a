"""The command line: `recengine --help`. Commands import what they need when they run."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from recengine.cli import offline, online
from recengine.errors import RecengineError

_EXTRAS = {
    "torch": "train",
    "lightning": "train",
    "onnxscript": "train",
    "polars": "data",
    "openvino": "serve",
    "onnx": "serve",
    "pydantic": "serve",
    "safetensors": "serve",
    "matplotlib": "bench",
}


class _OneLineErrors(TyperGroup):
    """Prints recengine's own errors, and those of files, as one line and exits with 1.

    Others keep their traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RecengineError as error:
            message = str(error)
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            message = f"this command needs {error.name}: pip install 'recengine[{extra}]'"
        except BrokenPipeError:
            raise  # nobody reads the output any more: typer ends quietly
        except OSError as error:
            reason = error.strerror or str(error)
            message = reason if error.filename is None else f"{error.filename}: {reason}"
        typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
        raise typer.Exit(1)


app = typer.Typer(
    cls=_OneLineErrors,
    help="Compiles a trained recommender into a Triton model repository, serves and calls it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
offline.register(app)
online.register(app)
