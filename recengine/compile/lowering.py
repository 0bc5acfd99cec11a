"""A bundle's graphs in another precision, behind the fidelity gate."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx

from recengine.bundle import FidelityBounds, FidelityRow, Manifest
from recengine.client.wire import WireUsers
from recengine.compile.calibration import largest_activations
from recengine.compile.fidelity import ReferenceAnswers, gate, load_reference
from recengine.compile.graph_runner import graph_runner
from recengine.compile.int8 import quantize
from recengine.compile.precision import lower
from recengine.compile.repository import stages
from recengine.compile.staged_answer import staged_answer
from recengine.engine import Engine, GraphInputs
from recengine.errors import CompileError
from recengine.plans import Precision

BOUNDS: Mapping[Precision, FidelityBounds] = {
    "fp32": FidelityBounds(),
    # Some twenty roundings by 2^-11 of what is added up.
    "fp16": FidelityBounds(score_error=1e-2),
    # Three bits fewer: 2^-8. Near neighbours change places, so that a few of 1,000 users win or
    # lose the held-out item at the list's end.
    "bf16": FidelityBounds(score_error=8e-2, metric_delta=0.005),
    # Steps of 1/127 of the largest activation and weight, in every product. The worst score was off
    # by a tenth to a fifth, by what was trained, at the same NDCG.
    "int8": FidelityBounds(score_error=30e-2, metric_delta=0.005),
}
"""How far graphs in a precision may be from eager PyTorch.

Items whose scores are within the score error may swap, so recall and NDCG are what holds a low
precision to the quality of the trained model.
"""

_BATCH = 64


def lower_graphs(
    bundle: Path, manifest: Manifest, precision: Precision, bounds: FidelityBounds | None = None
) -> tuple[dict[str, onnx.ModelProto], list[FidelityRow]]:
    """Both graphs in a precision, once what they answer was compared with eager PyTorch.

    The comparison runs on the CPU, before a target's compiler spends its time on them; it rounds
    where the graphs say, not where the compiler's kernels may.

    Args:
        bundle: directory that holds the fp32 graphs and the reference answers.
        manifest: its manifest.
        precision: of matrix products and what is cheap around them; inputs and outputs are fp32.
        bounds: how far the answers may be from eager PyTorch; None: `BOUNDS` of the precision.

    Returns:
        Models by the graph's name, and what was measured; nothing where the bundle has no
        reference.

    Raises:
        CompileError: a bound is passed, int8 has nothing to calibrate with, or ONNX Runtime is not
            installed.
    """
    names = [model.graph for model in stages(manifest)]
    models = {name: onnx.load(bundle / manifest.graphs[name].file) for name in names}
    if manifest.reference is None:
        return _unchecked(bundle, models, precision), []
    engine, reference = Engine(bundle), load_reference(bundle, manifest.reference)
    if precision == "int8":
        inputs = zip(*_calibration_inputs(engine, reference), strict=True)
        models = {
            name: quantize(models[name], largest_activations(models[name], batches))
            for name, batches in zip(names, inputs, strict=True)
        }
    else:
        models = _typed(models, precision)
    tower, ranker = (graph_runner(models[name]) for name in names)
    answer = staged_answer([engine] * 4, tower, ranker, *reference.sizes)
    try:
        rows = gate(reference, answer, "onnx", bounds or BOUNDS[precision])
    except CompileError as error:
        raise CompileError(f"[compile] graphs in {precision}, on the CPU: {error}") from None
    return models, rows


def _unchecked(
    bundle: Path, models: dict[str, onnx.ModelProto], precision: Precision
) -> dict[str, onnx.ModelProto]:
    if precision == "int8":
        raise CompileError(f"[compile] {bundle}: int8 needs reference users to calibrate with")
    warnings.warn(
        f"[compile] {bundle}: has no reference answers; graphs in {precision} are not checked",
        stacklevel=3,
    )
    return _typed(models, precision)


def _typed(models: dict[str, onnx.ModelProto], precision: Precision) -> dict[str, onnx.ModelProto]:
    if precision == "fp16" or precision == "bf16":
        return {name: lower(model, precision) for name, model in models.items()}
    return models


def _calibration_inputs(
    engine: Engine, reference: ReferenceAnswers
) -> Iterator[tuple[GraphInputs, GraphInputs]]:
    """What both graphs read for every second reference user; the others are compared only."""
    users, found = reference.users, reference.expected["retrieval"]
    for start in range(0, len(users.ids), 2 * _BATCH):
        part = slice(start, start + 2 * _BATCH, 2)
        dense = None if users.dense is None else users.dense[part]
        some = WireUsers(users.ids[part], users.lengths[part], dense)
        candidates = engine.look_up_candidates(some, found.items[part], found.scores[part])
        yield engine.look_up(some), candidates
