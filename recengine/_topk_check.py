"""The debug mode of the exact top-K: an answer against fp64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from recengine.errors import RecengineError

_ROWS_AT_ONCE = 1 << 16

Rows = npt.NDArray[np.int64]
UnitVectors = npt.NDArray[np.float32] | npt.NDArray[np.float16]


def check_against_fp64(
    item_rows: Rows,
    unit_vectors: UnitVectors,
    queries: npt.NDArray[np.float32],
    rows: Rows,
    scores: npt.NDArray[np.float32],
    exclude: Sequence[Rows],
    allowed: npt.NDArray[np.bool_] | None,
) -> None:
    """Raises RecengineError unless `rows` and `scores` [batch, k] are the best in fp64.

    Scores may be off, and items swapped, by what fp32 sums round: (dim + 4) 2^-24.

    Args:
        item_rows: of all items, ascending.
        unit_vectors: [items, dim], beside them.
        queries: [batch, dim].
        rows: the answer.
        scores: beside rows.
        exclude: rows that a query must not be answered with.
        allowed: [items], None for all.
    """
    norms = np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
    units = (queries / np.where(norms > 0, norms, 1)).astype(np.float32).astype(np.float64)
    tolerance = (unit_vectors.shape[1] + 4) * 2.0**-24
    for query in range(len(units)):
        wanted = np.ones(len(item_rows), bool) if allowed is None else allowed.copy()
        wanted[_find(item_rows, exclude[query])[1]] = False
        exact = _fp64_scores(unit_vectors, units[query])
        where = f"[cosine_topk] query {query}: "
        _check_query(item_rows, exact, wanted, rows[query], scores[query], tolerance, where)


def _find(item_rows: Rows, rows: Rows) -> tuple[npt.NDArray[np.bool_], Rows]:
    """Which of the rows are items, and where these are among the items."""
    places = np.searchsorted(item_rows, rows)
    are_items = np.append(item_rows, -1)[places] == rows
    return are_items, places[are_items]


def _fp64_scores(unit_vectors: UnitVectors, unit: Any) -> npt.NDArray[np.float64]:
    blocks = range(0, len(unit_vectors), _ROWS_AT_ONCE)
    parts = [unit_vectors[b : b + _ROWS_AT_ONCE].astype(np.float64) @ unit for b in blocks]
    return np.concatenate([np.empty(0), *parts])


def _check_query(
    item_rows: Rows,
    exact: npt.NDArray[np.float64],
    wanted: npt.NDArray[np.bool_],
    rows: Rows,
    scores: npt.NDArray[np.float32],
    tolerance: float,
    where: str,
) -> None:
    if np.isnan(exact).any() or np.isnan(scores).any():
        raise RecengineError(f"{where}expected scores that are numbers, found NaN")
    found = rows[rows >= 0]
    expected = min(len(rows), int(wanted.sum()))
    if len(found) != expected or len(np.unique(found)) != expected:
        raise RecengineError(f"{where}expected {expected} different items, found {found.tolist()}")
    are_items, places = _find(item_rows, found)
    if not are_items.all():
        raise RecengineError(f"{where}row {found[~are_items][0]} is no item")
    if not wanted[places].all():
        raise RecengineError(f"{where}row {found[~wanted[places]][0]} is not allowed")
    off = np.abs(exact[places] - scores[: len(found)])
    if (off > tolerance).any():
        worst = int(np.argmax(off))
        raise RecengineError(
            f"{where}row {found[worst]}: expected score {exact[places[worst]]:.9g}, "
            f"found {scores[worst]:.9g}"
        )
    wanted[places] = False
    if expected == len(rows) and wanted.any():
        best = int(np.argmax(np.where(wanted, exact, -np.inf)))
        if exact[best] > scores[expected - 1] + 2 * tolerance:
            raise RecengineError(
                f"{where}row {item_rows[best]} with score {exact[best]:.9g} is missing; "
                f"the last one found has {scores[expected - 1]:.9g}"
            )
