"""Quality and fidelity of what a path holds: a checkpoint, a bundle or a model repository."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from recengine.bundle import latest_version, read_manifest
from recengine.cli import show
from recengine.client import RecommenderClient, Schema
from recengine.compile import MEASURED
from recengine.compile.fidelity import gate, load_reference, served, served_answer
from recengine.compile.lowering import BOUNDS
from recengine.compile.repository import schema
from recengine.errors import BundleError, CompileError, ServerError
from recengine.plans import Precision, plans

_TIMEOUT_S = 30.0
_SPLIT = "split"  # in the record of the data set


def of_checkpoint(path: Path) -> None:
    """What training measured on the held-out users."""
    from recengine.training import checkpoint

    recommender = checkpoint.load(path)
    rows = ((row.method, row.metrics) for row in recommender.quality)
    show.quality(recommender.name, recommender.dataset.get(_SPLIT), rows)


def of_bundle(path: Path, url: str | None, precision: Precision | None) -> None:
    """What training measured and, by the server at `url`, what is answered for the same users.

    A bundle does not know in which precision a server runs its graphs.

    Raises:
        ServerError: the server has another model, or did not answer.
        CompileError: answers are farther from eager PyTorch than graphs in `precision` may be; None
            is fp32.
    """
    manifest = read_manifest(path)
    quality, split = manifest.provenance.quality, manifest.provenance.dataset.get(_SPLIT)
    if quality:
        show.quality(manifest.name, split, quality.items())
    if url is None:
        return
    if manifest.reference is None:
        raise BundleError(f"{path}: no reference users; export writes them")
    reference = load_reference(path, manifest.reference)
    with RecommenderClient(url, timeout=_TIMEOUT_S) as client:
        _require_same_model(client, schema(manifest), path)
        answer = served_answer(client, reference)
        try:
            rows = gate(reference, answer, "served", BOUNDS[precision or "fp32"])
        except CompileError as error:
            if precision is not None:
                raise
            raise CompileError(f"{error}\nif it runs graphs below fp32, say --precision") from None
    show.fidelity(split, rows)


def _require_same_model(client: RecommenderClient, expected: Schema, bundle: Path) -> None:
    served = client.schema
    differ = [
        field.name
        for field in dataclasses.fields(Schema)
        if getattr(served, field.name) != getattr(expected, field.name)
    ]
    if differ:
        raise ServerError(
            f"[evaluate] {client.url} serves the model {served.name!r}, but {bundle} is "
            f"{expected.name!r}: their schemas differ in {', '.join(differ)}"
        )


def of_repository(path: Path, url: str | None) -> None:
    """What the fidelity gate measured at compile and, with `url`, what it measures now."""
    if url is not None:
        precision: Precision = next((plan.precision for _, plan in plans(path)), "fp32")
        served(url, path, BOUNDS[precision])
    manifests = [read_manifest(latest_version(path / model)) for model in MEASURED]
    split = manifests[0].provenance.dataset.get(_SPLIT)
    show.fidelity(split, (row for manifest in manifests for row in manifest.fidelity))
