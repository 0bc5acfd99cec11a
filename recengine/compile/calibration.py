"""How large the activations of a graph become on requests that were held out."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper

from recengine.compile.graph_runner import outputs_runner
from recengine.compile.int8 import products
from recengine.compile.precision import fold_constants
from recengine.engine import GraphInputs


def largest_activations(model: onnx.ModelProto, batches: Iterable[GraphInputs]) -> dict[str, float]:
    """The largest magnitude of every activation that int8 matrix products read.

    The maximum and not a percentile: held-out users are few, and what lies beyond a percentile of
    their activations tells one item from another. On the demo's models, clipping at 99.9 % made the
    score error 3.5 times larger; at 99.999 % it fell in retrieval and rose in ranking by a quarter.

    Args:
        model: fp32.
        batches: inputs of the graph.

    Returns:
        Magnitudes by the tensor's name.

    Raises:
        CompileError: ONNX Runtime is not installed or does not take the model.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    fold_constants(watched.graph)
    names = {product.activation for product in products(watched.graph)}
    given = {value.name for value in [*watched.graph.input, *watched.graph.output]}
    watched.graph.output.extend(
        helper.make_empty_tensor_value_info(name) for name in sorted(names - given)
    )
    run = outputs_runner(watched)
    largest = dict.fromkeys(names, 0.0)
    for inputs in batches:
        values = inputs | run(inputs)
        for name in names:
            largest[name] = max(largest[name], float(np.abs(values[name]).max(initial=0)))
    return largest
