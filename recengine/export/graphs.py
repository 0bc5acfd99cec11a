"""Dense torch modules to ONNX graphs with dynamic batch and candidate counts."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import openvino
import torch
from torch import Tensor, nn

from recengine.bundle import Graph, GraphTensor
from recengine.errors import CompileError, InputError

OPSET = 18

# A protobuf message, weights included, holds less than 2 GiB.
_MAX_BYTES = 2**31 - 1

# Sizes to trace with (torch takes 0 and 1 for constants), and others to check with.
_TRACED = {"batch": 2, "n_candidates": 3}
_CHECKED = {"batch": 5, "n_candidates": 7}
_TOLERANCE = 1e-4

Shape = Sequence[int | str]


def export_graph(
    module: nn.Module, inputs: Mapping[str, Shape], output: tuple[str, Shape], path: Path
) -> Graph:
    """Writes `module` as ONNX and checks that the file computes what the module does.

    Args:
        module: takes fp32 tensors by the names of `inputs`, gives one tensor.
        inputs: dims by name; "batch" and "n_candidates" are dynamic axes.
        output: name and dims of what it gives.
        path: the .onnx file to write.

    Returns:
        The manifest's entry.

    Raises:
        InputError: the weights are more than an ONNX file holds.
        CompileError: the graph does not compute what the module computes.
    """
    num_bytes = sum(weight.numel() * weight.element_size() for weight in module.parameters())
    if num_bytes > _MAX_BYTES:
        raise InputError(
            f"[export] {path.name}: expected weights of at most {_MAX_BYTES} bytes, "
            f"found {num_bytes}"
        )
    module.eval()
    name, dims = output
    axes = {axis: torch.export.Dim(axis) for axis in _TRACED}
    with _quiet():
        program = torch.onnx.export(
            module,
            kwargs=_example(inputs, _TRACED),
            dynamic_shapes={
                tensor: {at: axes[dim] for at, dim in enumerate(shape) if isinstance(dim, str)}
                for tensor, shape in inputs.items()
            },
            input_names=list(inputs),
            output_names=[name],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _strip(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    _check_dims(model, inputs, path)
    _check(module, inputs, name, path)
    return Graph(
        file=path.name,
        format="onnx",
        inputs=[GraphTensor(name=tensor, dims=list(shape)) for tensor, shape in inputs.items()],
        outputs=[GraphTensor(name=name, dims=list(dims))],
    )


def _example(inputs: Mapping[str, Shape], sizes: Mapping[str, int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(
            [sizes[dim] if isinstance(dim, str) else dim for dim in shape], generator=generator
        )
        for name, shape in inputs.items()
    }


def _strip(model: onnx.ModelProto) -> None:
    """Drops what torch notes on every node: stack traces with the paths of this machine."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.value_info[:]


def _check_dims(model: onnx.ModelProto, inputs: Mapping[str, Shape], path: Path) -> None:
    """Refuses an axis that became a constant, as it does where forward() calls len()."""
    for port in model.graph.input:
        found = [dim.dim_param or dim.dim_value for dim in port.type.tensor_type.shape.dim]
        expected = list(inputs[port.name])
        if [isinstance(dim, str) for dim in found] != [isinstance(dim, str) for dim in expected]:
            raise CompileError(
                f"[export] {path.name}: input {port.name}: expected {expected}, found {found}"
            )


def _check(module: nn.Module, inputs: Mapping[str, Shape], output: str, path: Path) -> None:
    """Runs the file on sizes that it was not traced with."""
    example = _example(inputs, _CHECKED)
    with torch.inference_mode():
        expected = module(**example).numpy()
    compiled = openvino.Core().compile_model(
        path, "CPU", {"INFERENCE_PRECISION_HINT": openvino.Type.f32}
    )
    found = compiled({name: tensor.numpy() for name, tensor in example.items()})[output]
    error = np.abs(found - expected).max() / max(1.0, np.abs(expected).max())
    if found.shape != expected.shape or not error <= _TOLERANCE:
        raise CompileError(
            f"[export] {path.name}: {output}: expected what torch computes within {_TOLERANCE}, "
            f"found an error of {error}"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch's remarks on its own internals and on packages that are not there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
