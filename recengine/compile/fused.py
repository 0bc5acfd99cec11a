"""The repository of the target cpu: each model runs all of its stages in one step."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from recengine.bundle import Manifest
from recengine.client.wire import WireUsers
from recengine.compile import openvino, version_directory
from recengine.compile.fidelity import Answer, Ranked, Stage
from recengine.compile.repository import Requests, fused_configs
from recengine.compile.version_directory import Model
from recengine.engine import Engine

# Ranking first: whoever starts in between ranks items of a catalog that it knows.
_COMPOSING: tuple[Model, ...] = ("ranking", "retrieval")


class Fused:
    """What compile writes for a bundle; see `recengine.compile.Layout`."""

    composing: tuple[str, ...] = _COMPOSING
    ensembles: tuple[str, ...] = ("recommend",)

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def stage(self, bundle: Path, staging: Path) -> None:
        """Writes version directories: linked files, and the graphs as OpenVINO IR."""
        for model in _COMPOSING:
            part = version_directory.part(self._manifest, model, "cpu")
            building = staging / f"{model}.building"
            building.mkdir()
            graphs = {
                name: openvino.convert(bundle, graph, building, name)
                for name, graph in part.graphs.items()
            }
            compiled = part.model_copy(update={"graphs": graphs})
            version_directory.write(bundle, compiled, staging / model, building=building)
        version_directory.write_empty(staging / "recommend")

    def answer(self, staging: Path, num_candidates: int | None, k: int | None) -> Answer:
        """Runs the staged directories in process."""
        retrieval, ranking = Engine(staging / "retrieval"), Engine(staging / "ranking")

        def answer(users: WireUsers) -> dict[Stage, Ranked]:
            candidates = Ranked(*retrieval.retrieve(users, k=num_candidates))
            items = Ranked(*ranking.rank(users, candidates.items, candidates.scores, k=k))
            return {"retrieval": candidates, "recommend": items}

        return answer

    def configs(
        self, requests: Requests, version: int, kept: Iterable[int]
    ) -> dict[str, pb.ModelConfig]:
        """The same for every version: the ensemble runs the newest."""
        return fused_configs(self._manifest, requests)
