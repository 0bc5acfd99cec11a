"""The repository of the targets whose dense graphs run in a stock backend of Triton."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from tritonclient.grpc import model_config_pb2 as pb

from recengine.bundle import Manifest, Stage, Target
from recengine.compile import version_directory
from recengine.compile.fidelity import Answer
from recengine.compile.graph_signature import require_signatures
from recengine.compile.repository import Requests, stages
from recengine.compile.split_repository import configs as split_configs
from recengine.compile.staged_answer import Run, staged_answer
from recengine.compile.version_directory import Model
from recengine.engine import Engine
from recengine.errors import CompileError

STAGES: dict[str, tuple[Model, Stage]] = {
    "retrieval_lookup": ("retrieval", "lookup"),
    "retrieval_topk": ("retrieval", "topk"),
    "ranking_lookup": ("ranking", "lookup"),
    "ranking_order": ("ranking", "order"),
}
"""The models that our backend runs, in the order of a request."""


class GraphCompiler(Protocol):
    """How the graphs of a target are compiled, and run where compile runs."""

    def convert(self, bundle: Path, manifest: Manifest, name: str, destination: Path) -> None:
        """Writes what Triton's backend loads of graph `name` to `destination`.

        Raises:
            CompileError: the graph cannot be compiled, or is not what the manifest says.
        """

    def load(self, directory: Path) -> Run:
        """What `convert` wrote, ready to run in this process: the fidelity gate asks it.

        Raises:
            CompileError: this machine cannot run it.
        """


class Split:
    """What compile writes for a bundle; see `recengine.compile.Layout`.

    Args:
        manifest: the bundle's.
        target: what to compile for.
        compiler: of this target's graphs.

    Raises:
        CompileError: a graph's name cannot be that of its model, or its tensors do not fit the
            bundle's tables and index.
    """

    ensembles: tuple[str, ...] = ("ranking", "retrieval", "recommend")

    def __init__(self, manifest: Manifest, target: Target, compiler: GraphCompiler) -> None:
        self._manifest = manifest
        self._target = target
        self._graphs = [model.graph for model in stages(manifest)]
        self._compiler = compiler
        self._require_model_names()
        require_signatures(manifest)
        self.composing: tuple[str, ...] = (*STAGES, *self._graphs)

    def stage(self, bundle: Path, staging: Path) -> None:
        """Writes version directories.

        That of a stage has a manifest and linked files; of a graph, what its backend loads; of
        `retrieval` and `ranking`, which are ensembles, a manifest as record of what was compiled.
        """
        for name, (model, kind) in STAGES.items():
            self._write(bundle, model, kind, staging / name)
        for name in self._graphs:
            (staging / name).mkdir()
            self._compiler.convert(bundle, self._manifest, name, staging / name)
        self._write(bundle, "retrieval", "ensemble", staging / "retrieval")
        self._write(bundle, "ranking", "ensemble", staging / "ranking")
        version_directory.write_empty(staging / "recommend")

    def answer(self, staging: Path, num_candidates: int | None, k: int | None) -> Answer:
        """Runs the staged directories in process, graphs by their target's own runtime."""
        engines = [Engine(staging / name) for name in STAGES]
        tower, ranker = (self._compiler.load(staging / name) for name in self._graphs)
        return staged_answer(engines, tower, ranker, num_candidates, k)

    def configs(
        self, requests: Requests, version: int, kept: Iterable[int]
    ) -> dict[str, pb.ModelConfig]:
        """Those of one version: no answer is made of two."""
        return split_configs(self._manifest, requests, self._target, version, kept)

    def _write(self, bundle: Path, model: Model, kind: Stage, destination: Path) -> None:
        part = version_directory.part(self._manifest, model, self._target, stage=kind)
        building = destination.with_name(f"{destination.name}.building")
        building.mkdir()
        version_directory.write(bundle, part, destination, building=building)

    def _require_model_names(self) -> None:
        taken = {*STAGES, *self.ensembles}
        for name in self._graphs:
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
                raise CompileError(
                    f"[compile] graph {name!r}: expected letters, digits, '_', '-' and '.', for it "
                    "names a model"
                )
            if name in taken:
                raise CompileError(f"[compile] graph {name!r}: another model has this name")
            taken.add(name)
