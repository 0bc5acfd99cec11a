"""Load generation and measurement of a served model repository: `recengine bench`."""

from recengine.serving.bench.commands import app

__all__ = ["app"]
