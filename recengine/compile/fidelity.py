"""The fidelity gate: an engine's answers beside those of eager PyTorch, for the same users.

What eager PyTorch answered is stored in the bundle (recengine.bundle.Reference), so that nothing
here needs torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from recengine.bundle import (
    FidelityBounds,
    FidelityRow,
    Reference,
    latest_version,
    read_manifest,
    write_manifest,
)
from recengine.client import RecommenderClient
from recengine.client.wire import WireUsers
from recengine.errors import BundleError, CompileError, ServerError
from recengine.keys import NO_ITEM

Ids = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
Stage = Literal["retrieval", "recommend"]
Via = Literal["engine", "served", "onnx"]

_BATCH = 64
_DEADLINE_S = 30.0


@dataclasses.dataclass(frozen=True, eq=False)
class Ranked:
    """Items and scores [users, k], best first, padded with -1 and -inf."""

    items: Ids
    scores: Scores


@dataclasses.dataclass(frozen=True, eq=False)
class ReferenceAnswers:
    """Held-out users, the item each took next, and what eager PyTorch answered them."""

    users: WireUsers
    target: Ids
    expected: dict[Stage, Ranked]

    @property
    def sizes(self) -> tuple[int, int]:
        """How many candidates and how many items were answered."""
        return self.expected["retrieval"].items.shape[1], self.expected["recommend"].items.shape[1]


Answer = Callable[[WireUsers], dict[Stage, Ranked]]
"""Answers a batch of users, as many candidates and items as the reference holds."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One row of the gate, and where it is worst."""

    row: FidelityRow
    worst_score: str
    first_difference: str


def load_reference(directory: Path, reference: Reference) -> ReferenceAnswers:
    """Reads the reference of a bundle or version directory.

    Raises:
        BundleError: a tensor is missing.
    """
    path = directory / reference.file
    tensors = load_file(path)
    try:
        return ReferenceAnswers(
            users=WireUsers(tensors["ids"], tensors["lengths"], tensors.get("dense")),
            target=tensors["target"],
            expected={
                "retrieval": Ranked(tensors["candidates"], tensors["candidate_scores"]),
                "recommend": Ranked(tensors["items"], tensors["scores"]),
            },
        )
    except KeyError as error:
        raise BundleError(f"{path}: expected a tensor {error}, found {sorted(tensors)}") from None


def gate(
    reference: ReferenceAnswers, answer: Answer, via: Via, bounds: FidelityBounds
) -> list[FidelityRow]:
    """Answers the reference users and refuses what is too far from eager PyTorch.

    Raises:
        CompileError: a bound is passed; the message is a table of which and where.
    """
    comparisons = measure(reference, answer, via, bounds)
    failures = [line for item in comparisons for line in _failures(item, bounds)]
    if failures:
        header = ("stage", "measure", "bound", "found", "where")
        raise CompileError(
            f"[fidelity] {via}: answers differ from eager PyTorch\n{_table([header, *failures])}"
        )
    return [item.row for item in comparisons]


def measure(
    reference: ReferenceAnswers, answer: Answer, via: Via, bounds: FidelityBounds
) -> list[Comparison]:
    """Answers the reference users in batches and compares, stage by stage.

    Scores are compared as |found - eager| / max(1, |eager|): absolute for cosines, relative for
    logits beyond 1. Items whose eager scores are within `bounds.score_error` of each other, on the
    same scale, may swap.
    """
    count = len(reference.target)
    parts = [answer(_slice(reference.users, at, at + _BATCH)) for at in range(0, count, _BATCH)]
    comparisons = []
    for stage, expected in reference.expected.items():
        found = Ranked(
            np.concatenate([part[stage].items for part in parts]),
            np.concatenate([part[stage].scores for part in parts]),
        )
        if found.items.shape != expected.items.shape:
            raise CompileError(
                f"[fidelity] {via}, {stage}: expected answers of shape {expected.items.shape}, "
                f"found {found.items.shape}"
            )
        comparisons.append(
            _compare(stage, via, reference.target, expected, found, bounds.score_error)
        )
    return comparisons


def served(url: str, repository: Path, bounds: FidelityBounds | None = None) -> list[FidelityRow]:
    """Runs the gate against a live server and stores its rows in the repository's manifests.

    Args:
        url: host:port of the server's gRPC endpoint.
        repository: what the server serves; its newest versions hold reference and manifests.
        bounds: how far the answers may be from eager PyTorch.

    Returns:
        The rows of retrieval and recommend.

    Raises:
        BundleError: the repository holds no reference.
        CompileError: a bound is passed.
        ServerError: the server did not answer, or does not serve the newest versions.
    """
    version = latest_version(repository / "retrieval")
    stored = read_manifest(version).reference
    if stored is None:
        raise BundleError(f"{version}: no reference; export writes one")
    reference = load_reference(version, stored)
    _require_newest(url, repository)
    with RecommenderClient(url, timeout=_DEADLINE_S) as client:
        answer = served_answer(client, reference)
        rows = gate(reference, answer, "served", bounds or FidelityBounds())
    for model, stage in (("retrieval", "retrieval"), ("ranking", "recommend")):
        directory = latest_version(repository / model)
        manifest = read_manifest(directory)
        kept = [row for row in manifest.fidelity if row.path != "served"]
        fresh = [row for row in rows if row.stage == stage]
        write_manifest(directory, manifest.model_copy(update={"fidelity": kept + fresh}))
    return rows


def _require_newest(url: str, repository: Path) -> None:
    """The rows are stored with the newest versions, so these must be the ones that answer."""
    with InferenceServerClient(url) as client:
        for model in ("retrieval", "ranking"):
            newest = latest_version(repository / model).name
            try:
                found = client.get_model_metadata(model, client_timeout=_DEADLINE_S).versions
            except InferenceServerException as error:
                raise ServerError(f"[{model}] {url}: {error.message()}") from None
            if list(found) != [newest]:
                raise ServerError(
                    f"[{model}] {url}: expected version {newest}, the newest in {repository}, "
                    f"found {', '.join(found)}"
                )


def served_answer(client: RecommenderClient, reference: ReferenceAnswers) -> Answer:
    """Asks a server for as many candidates and items as the reference holds."""
    num_candidates, k = reference.sizes

    def answer(users: WireUsers) -> dict[Stage, Ranked]:
        found = client.retrieve(users, k=num_candidates)
        best = client.recommend(users, k=k, num_candidates=num_candidates)
        return {
            "retrieval": Ranked(found.item_ids, found.scores),
            "recommend": Ranked(best.item_ids, best.scores),
        }

    return answer


def _slice(users: WireUsers, start: int, stop: int) -> WireUsers:
    dense = None if users.dense is None else users.dense[start:stop]
    return WireUsers(users.ids[start:stop], users.lengths[start:stop], dense)


def _compare(
    stage: Stage, via: Via, target: Ids, expected: Ranked, found: Ranked, tolerance: float
) -> Comparison:
    eager = _eager_scores(expected, found)  # [users, k], NaN where eager has no such item
    scale = np.maximum(1, np.abs(eager))
    with np.errstate(invalid="ignore"):
        error = np.abs(found.scores - eager) / scale
    error[~np.isnan(eager) & ~np.isfinite(found.scores)] = np.inf
    error = np.nan_to_num(error, nan=0.0, posinf=np.inf)
    same = _same_place(expected, found, eager, tolerance)
    recall_eager, ndcg_eager = _metrics(expected.items, target)
    recall, ndcg = _metrics(found.items, target)
    row = FidelityRow(
        stage=stage,
        path=via,
        users=len(target),
        k=expected.items.shape[1],
        score_error=float(error.max(initial=0)),
        identical_top_k=float(same.all(axis=1).mean()),
        recall=recall,
        recall_eager=recall_eager,
        ndcg=ndcg,
        ndcg_eager=ndcg_eager,
    )
    user, place = np.unravel_index(np.argmax(error), error.shape)
    worst = (
        f"user {user}, item {found.items[user, place]}: "
        f"expected {eager[user, place]:.6g}, found {found.scores[user, place]:.6g}"
    )
    user, place = np.unravel_index(np.argmin(same), same.shape)
    first = (
        f"user {user}, place {place}: "
        f"expected item {expected.items[user, place]}, found {found.items[user, place]}"
    )
    return Comparison(row, worst, first)


def _eager_scores(expected: Ranked, found: Ranked) -> npt.NDArray[np.float64]:
    """The eager score of every found item, NaN for those that eager did not answer."""
    eager = np.full(found.items.shape, np.nan)
    for user in range(len(eager)):
        known = expected.items[user] != NO_ITEM
        _, theirs, ours = np.intersect1d(
            expected.items[user][known], found.items[user], return_indices=True
        )
        eager[user, ours] = expected.scores[user][known][theirs]
    return eager


def _same_place(
    expected: Ranked, found: Ranked, eager: npt.NDArray[np.float64], tolerance: float
) -> npt.NDArray[np.bool_]:
    """True where the found item is the eager one, or ties with it within the tolerance."""
    finite = np.where(np.isfinite(expected.scores), expected.scores, np.nan).astype(np.float64)
    tolerated = tolerance * np.maximum(1, np.abs(finite))
    last = finite[:, -1:]  # NaN when the eager list is padded: then nothing fell off its end
    with np.errstate(invalid="ignore"):
        swapped = np.abs(eager - finite) <= tolerated
        # An item that eager left out may tie with the end of its list.
        fell_off = np.isnan(eager) & (np.abs(finite - last) <= tolerated)
        fell_off &= np.abs(found.scores - finite) <= tolerated
    return np.asarray((found.items == expected.items) | swapped | fell_off)


def _metrics(items: Ids, target: Ids) -> tuple[float, float]:
    """recall@k and NDCG@k of one held-out item per user."""
    hits = items == target[:, None]
    gains = hits / np.log2(np.arange(2, items.shape[1] + 2))
    return float(hits.any(axis=1).mean()), float(gains.sum(axis=1).mean())


def _failures(item: Comparison, bounds: FidelityBounds) -> list[tuple[str, ...]]:
    row = item.row
    # Written so that a NaN fails.
    checks = [
        (
            "score_error",
            row.score_error <= bounds.score_error,
            f"<= {bounds.score_error:g}",
            f"{row.score_error:.3g}",
            item.worst_score,
        ),
        (
            "identical_top_k",
            row.identical_top_k >= bounds.identical_top_k,
            f">= {bounds.identical_top_k:g}",
            f"{row.identical_top_k:.4f}",
            item.first_difference,
        ),
    ]
    for name, ours, eager in (
        ("recall", row.recall, row.recall_eager),
        ("ndcg", row.ndcg, row.ndcg_eager),
    ):
        passed = abs(ours - eager) <= bounds.metric_delta
        bound = f"{eager:.4f} +- {bounds.metric_delta:g}"
        checks.append((f"{name}@{row.k}", passed, bound, f"{ours:.4f}", f"{row.users} users"))
    return [(row.stage, name, *rest) for name, passed, *rest in checks if not passed]


def _table(lines: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
