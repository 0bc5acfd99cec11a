"""What the tests of plans need of the machine, and what they expect of the golden bundle."""

import importlib.util

import pytest

from recengine.compile.lowering import BOUNDS
from recengine.errors import DeviceError, ServerError
from recengine.gpu import current_gpu
from recengine.serving.backends import server_backends
from recengine.serving.server import find_tritonserver

# Which of its few items comes first is within what int8 rounds.
GOLDEN_BOUNDS = {**BOUNDS, "int8": BOUNDS["int8"].model_copy(update={"identical_top_k": 0.5})}


def no_tensorrt():
    """Why plans cannot be built here; empty where they can."""
    if importlib.util.find_spec("tensorrt") is None:
        return "TensorRT is not installed"
    try:
        current_gpu()
    except DeviceError as error:
        return str(error)
    return ""


def require_plan_server():
    """Skips where no tritonserver serves the plans that are built here."""
    reason = no_tensorrt()
    try:
        backends = server_backends(find_tritonserver())
    except ServerError as error:
        pytest.skip(reason or str(error))
    if not (backends / "tensorrt").is_dir():
        reason = reason or f"{backends} has no TensorRT backend"
    if reason:
        pytest.skip(reason)
