"""Serves trained recommenders: compile to a Triton model repository, serve and call it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recengine.device_engine import DeviceEngine
    from recengine.engine import Engine

    __version__: str

__all__ = ["DeviceEngine", "Engine", "__version__"]


def __getattr__(name: str) -> Any:
    # The client imports this package too, where neither the native module nor metadata is needed.
    if name == "Engine":
        from recengine.engine import Engine

        return Engine
    if name == "DeviceEngine":
        from recengine.device_engine import DeviceEngine

        return DeviceEngine
    if name == "__version__":
        from importlib.metadata import version

        return version("recengine")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
