"""Answers put together from single stages, with graphs that the engine does not run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from recengine.client.wire import WireUsers
from recengine.compile.fidelity import Answer, Ranked, Stage
from recengine.engine import Engine, Floats, GraphInputs

Run = Callable[[GraphInputs], Floats]
"""Computes a graph's only output."""


def staged_answer(
    engines: Sequence[Engine],
    tower: Run,
    ranker: Run,
    num_candidates: int | None,
    k: int | None,
) -> Answer:
    """The path of a request through the stages, for the fidelity gate.

    Args:
        engines: who looks users up, searches, looks candidates up, and orders.
        tower: the graph of retrieval.
        ranker: the graph of ranking.
        num_candidates: how many to retrieve; None: what the engines do by default.
        k: how many to answer; None: the same.
    """
    lookup, topk, candidate_lookup, order = engines

    def answer(users: WireUsers) -> dict[Stage, Ranked]:
        vectors = tower(lookup.look_up(users))
        searched = _for_engine(users, topk)
        candidates = Ranked(*topk.search(searched, vectors, k=num_candidates))
        found = candidates.items, candidates.scores
        scores = ranker(candidate_lookup.look_up_candidates(users, *found))
        items = Ranked(*order.order(_for_engine(users, order), *found, scores, k=k))
        return {"retrieval": candidates, "recommend": items}

    return answer


def _for_engine(users: WireUsers, engine: Engine) -> WireUsers:
    """A single stage behind a graph takes no dense features."""
    dense = users.dense if engine.schema.dense_features else None
    return WireUsers(users.ids, users.lengths, dense)
