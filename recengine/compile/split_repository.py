"""config.pbtxt of a repository whose dense graphs run in a stock backend of Triton.

For the target gpu every step computes on the GPU, and what one gives another stays there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tritonclient.grpc import model_config_pb2 as pb

from recengine.bundle import Graph, Manifest, Target
from recengine.compile.graph_signature import dims
from recengine.compile.repository import (
    ANSWER,
    CANDIDATES,
    DEADLINE,
    Requests,
    Tensors,
    add_schema,
    add_step,
    add_warmup,
    as_is,
    composing,
    ensemble,
    model,
    stages,
    user_tensors,
)

# Executions of a graph at a time, on one thread each; Triton's ONNX Runtime backend has as many by
# default. Its thread pools spin while they wait, and our backend has a thread a core already.
_ONNX_RUNTIME_INSTANCES = 2

_KEYS = ("ids", "lengths")

# In an ensemble a tensor has one step that gives it; the other one's deadline is never later.
_RETRIEVAL_DEADLINE = {"deadline": "retrieval_deadline"}
_RANKING_DEADLINE = {"deadline": "ranking_deadline"}


def configs(
    manifest: Manifest,
    requests: Requests,
    target: Target,
    version: int,
    kept: Iterable[int] = (),
) -> dict[str, pb.ModelConfig]:
    """The Triton configuration of each model, by name; ensembles last.

    Every model is for this version alone, and the ensembles' steps name it: whatever is loaded or
    half written, an answer is never made of two versions. Triton refuses to serve an ensemble while
    a step has another version: until all ensembles name the new one, steps also serve those `kept`.
    """
    retrieval, ranking = stages(manifest)
    tower, ranker = (manifest.graphs[name] for name in (retrieval.graph, ranking.graph))
    result = {
        **_stages(manifest, requests, target, tower, ranker),
        retrieval.graph: _dense(retrieval.graph, tower, target, requests),
        ranking.graph: _dense(ranking.graph, ranker, target, requests),
    }
    for config in result.values():
        config.version_policy.specific.versions.extend([*kept, version])
    result |= _ensembles(manifest, requests, version)
    for config in result.values():
        if config.backend == "recengine" or config.platform == "ensemble":
            add_schema(config, manifest)
    return result


def _stages(
    manifest: Manifest, requests: Requests, target: Target, tower: Graph, ranker: Graph
) -> dict[str, pb.ModelConfig]:
    """The models that our backend runs; ids and lengths go to all of them, dense to lookups."""
    users = user_tensors(requests)
    keys = {name: users[name] for name in _KEYS}
    tower_reads, ranker_reads = dims(tower.inputs), dims(ranker.inputs)
    items = {
        "sparse": ranker_reads["sparse"],
        "items": ranker_reads["items"],
        "item_scores": ranker_reads["candidate_scores"],
    }
    tensors: dict[str, tuple[Tensors, Tensors]] = {
        "retrieval_lookup": (users, {"sparse": tower_reads["sparse"], **DEADLINE}),
        "retrieval_topk": ({**keys, **dims(tower.outputs), **DEADLINE}, ANSWER),
        "ranking_lookup": ({**users, **CANDIDATES, **DEADLINE}, {**items, **DEADLINE}),
        "ranking_order": ({**keys, **CANDIDATES, "graph_scores": [-1], **DEADLINE}, ANSWER),
    }
    group = pb.ModelInstanceGroup
    kind = group.KIND_GPU if target == "gpu" else group.KIND_CPU
    return {
        name: composing(name, inputs, outputs, requests, kind)
        for name, (inputs, outputs) in tensors.items()
    }


def _dense(name: str, graph: Graph, target: Target, requests: Requests) -> pb.ModelConfig:
    """The model of a graph."""
    config = model(name, dims(graph.inputs), dims(graph.outputs), requests)
    config.dynamic_batching.SetInParent()
    add_warmup(config, {}, requests)
    if target == "gpu":
        config.platform = "tensorrt_plan"
        config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_GPU)
        _capture_cuda_graphs(config, requests)
        config.optimization.input_pinned_memory.enable = True
        config.optimization.output_pinned_memory.enable = True
    else:
        config.backend = "onnxruntime"
        kind = pb.ModelInstanceGroup.KIND_CPU
        config.instance_group.add(count=_ONNX_RUNTIME_INSTANCES, kind=kind)
        config.parameters["intra_op_thread_count"].string_value = "1"
    return config


def _capture_cuda_graphs(config: pb.ModelConfig, requests: Requests) -> None:
    """CUDA graphs of powers of two, each for the smaller batches that have none of their own.

    The backend runs the rows that such a batch lacks, too, and drops their answers. It does not cut
    answers to fewer candidates, so that the graphs are for the usual number of them alone. Without
    these it would capture the batches 1 and `max_batch`, and launch them for no other.
    """
    cuda = config.optimization.cuda
    cuda.graphs = True
    lower = 1
    while lower <= requests.max_batch:
        batch = min(1 << (lower - 1).bit_length(), requests.max_batch)
        spec = cuda.graph_spec.add(batch_size=batch)
        spec.graph_lower_bound.batch_size = lower
        for tensor in config.input:
            shape = [requests.usual_candidates if dim == -1 else dim for dim in tensor.dims]
            spec.input[tensor.name].dim.extend(shape)
            spec.graph_lower_bound.input[tensor.name].dim.extend(shape)
        lower = batch + 1


def _ensembles(manifest: Manifest, requests: Requests, version: int) -> dict[str, pb.ModelConfig]:
    """Each of the three has its steps itself: an ensemble in an ensemble is one more hop."""
    users = user_tensors(requests)
    retrieval = ensemble("retrieval", users, requests)
    _add_retrieval(retrieval, manifest, users, version, as_is(ANSWER))
    ranking = ensemble("ranking", {**users, **CANDIDATES}, requests)
    _add_ranking(ranking, manifest, users, version, {})
    recommend = ensemble("recommend", users, requests)
    found = dict(zip(ANSWER, CANDIDATES, strict=True))
    _add_retrieval(recommend, manifest, users, version, found)
    _add_ranking(recommend, manifest, users, version, _RETRIEVAL_DEADLINE)
    return {"ranking": ranking, "retrieval": retrieval, "recommend": recommend}


def _add_retrieval(
    config: pb.ModelConfig,
    manifest: Manifest,
    users: Iterable[str],
    version: int,
    found: Mapping[str, str],
) -> None:
    graph, _ = stages(manifest)
    tower = manifest.graphs[graph.graph]
    (user,) = (tensor.name for tensor in tower.outputs)
    read = {"sparse": "retrieval_sparse"}
    asked = as_is((*_KEYS, "user")) | _RETRIEVAL_DEADLINE
    add_step(config, "retrieval_lookup", as_is(users), read | _RETRIEVAL_DEADLINE, version)
    add_step(config, graph.graph, _inputs(tower) | read, {user: "user"}, version)
    add_step(config, "retrieval_topk", asked, found, version)


def _add_ranking(
    config: pb.ModelConfig,
    manifest: Manifest,
    users: Iterable[str],
    version: int,
    told: dict[str, str],
) -> None:
    _, graph = stages(manifest)
    ranker = manifest.graphs[graph.graph]
    (scores,) = (tensor.name for tensor in ranker.outputs)
    read = {"sparse": "ranking_sparse", "items": "items", "item_scores": "item_scores"}
    filled = {"sparse": "ranking_sparse", "candidate_scores": "item_scores"}
    asked = as_is((*users, *CANDIDATES)) | told
    answered = as_is((*_KEYS, *CANDIDATES, "graph_scores")) | _RANKING_DEADLINE
    add_step(config, "ranking_lookup", asked, read | _RANKING_DEADLINE, version)
    add_step(config, graph.graph, _inputs(ranker) | filled, {scores: "graph_scores"}, version)
    add_step(config, "ranking_order", answered, as_is(ANSWER), version)


def _inputs(graph: Graph) -> dict[str, str]:
    return as_is(tensor.name for tensor in graph.inputs)
