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
    unit_vectors: UnitVectors,
    queries: npt.NDArray[np.float32],
    rows: Rows,
    scores: npt.NDArray[np.float32],
    exclude: Sequence[Rows],
    allowed: npt.NDArray[np.bool_] | None,
) -> None:
    """Raises RecengineError unless `rows` and `scores` [batch, k] are the best in fp64.

    Scores may be off, and items swapped, by what fp32 sums round: (dim + 4) 2^-24.
    """
    norms = np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
    units = (queries / np.where(norms > 0, norms, 1)).astype(np.float32).astype(np.float64)
    tolerance = (unit_vectors.shape[1] + 4) * 2.0**-24
    for query in range(len(units)):
        wanted = np.ones(len(unit_vectors), bool) if allowed is None else allowed.copy()
        wanted[exclude[query]] = False
        exact = _fp64_scores(unit_vectors, units[query])
        where = f"[cosine_topk] query {query}: "
        _check_query(exact, wanted, rows[query], scores[query], tolerance, where)


def _fp64_scores(unit_vectors: UnitVectors, unit: Any) -> npt.NDArray[np.float64]:
    blocks = range(0, len(unit_vectors), _ROWS_AT_ONCE)
    parts = [unit_vectors[b : b + _ROWS_AT_ONCE].astype(np.float64) @ unit for b in blocks]
    return np.concatenate([np.empty(0), *parts])


def _check_query(
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
    if not wanted[found].all():
        row = found[~wanted[found]][0]
        raise RecengineError(f"{where}row {row} is not allowed")
    off = np.abs(exact[found] - scores[: len(found)])
    if (off > tolerance).any():
        place = int(np.argmax(off))
        raise RecengineError(
            f"{where}row {found[place]}: expected score {exact[found[place]]:.9g}, "
            f"found {scores[place]:.9g}"
        )
    wanted[found] = False
    if expected == len(rows) and wanted.any():
        best = int(np.argmax(np.where(wanted, exact, -np.inf)))
        if exact[best] > scores[expected - 1] + 2 * tolerance:
            raise RecengineError(
                f"{where}row {best} with score {exact[best]:.9g} is missing; "
                f"the last one found has {scores[expected - 1]:.9g}"
            )
