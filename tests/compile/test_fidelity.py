"""The gate on answers made by hand: what passes, what does not, and what the message says."""

import numpy as np
import pytest

from recengine.bundle import FidelityBounds
from recengine.client.wire import WireUsers
from recengine.compile.fidelity import Ranked, ReferenceAnswers, gate, measure
from recengine.errors import CompileError

USERS, CANDIDATES, K = 100, 20, 5
BOUNDS = FidelityBounds()


def ranked(rng, k):
    items = np.argsort(rng.random((USERS, 50)), axis=1)[:, :k]
    scores = np.sort(rng.standard_normal((USERS, k)), axis=1)[:, ::-1].astype(np.float32)
    return Ranked(items, scores)


@pytest.fixture
def reference():
    rng = np.random.default_rng(0)
    users = WireUsers(np.arange(USERS)[:, None], np.ones((USERS, 2), np.int32), None)
    expected = {"retrieval": ranked(rng, CANDIDATES), "recommend": ranked(rng, K)}
    return ReferenceAnswers(users, rng.integers(0, 50, USERS), expected)


def answering(reference, **changes):
    """An engine that answers as the reference does but for `changes`, per stage."""
    answers = reference.expected | changes

    def answer(users):
        rows = users.ids[:, 0]
        return {
            stage: Ranked(all_.items[rows], all_.scores[rows]) for stage, all_ in answers.items()
        }

    return answer


def test_the_same_answers_pass_with_no_error(reference):
    for row in gate(reference, answering(reference), "engine", BOUNDS):
        assert (row.score_error, row.identical_top_k, row.users) == (0, 1, USERS)
        assert (row.recall, row.ndcg) == (row.recall_eager, row.ndcg_eager)


def test_metrics_are_hit_rate_and_discounted_gain(reference):
    items = reference.expected["recommend"].items.copy()
    items[items == reference.target[:, None]] = 99
    items[:25, 2] = reference.target[:25]
    answers = Ranked(items, reference.expected["recommend"].scores)
    found = measure(reference, answering(reference, recommend=answers), "engine", BOUNDS)[1].row
    assert found.recall == pytest.approx(0.25)
    assert found.ndcg == pytest.approx(0.25 / np.log2(4))


def test_a_wrong_score_fails_naming_stage_user_and_item(reference):
    right = reference.expected["recommend"]
    scores = right.scores.copy()
    scores[17, 3] += 0.5
    with pytest.raises(CompileError) as refused:
        gate(
            reference, answering(reference, recommend=Ranked(right.items, scores)), "engine", BOUNDS
        )
    lines = str(refused.value).splitlines()
    assert lines[1].split() == ["stage", "measure", "bound", "found", "where"]
    assert len(lines) == 3
    assert lines[2].startswith("recommend  score_error  <= 0.001  0.5")
    assert f"user 17, item {right.items[17, 3]}: expected " in lines[2]


def test_errors_of_large_scores_are_relative(reference):
    right = reference.expected["recommend"]
    hundred = Ranked(right.items, right.scores + 100)
    reference.expected["recommend"] = hundred
    off = Ranked(right.items, hundred.scores * np.float32(1.0005))
    row = gate(reference, answering(reference, recommend=off), "engine", BOUNDS)[1]
    assert row.score_error == pytest.approx(0.0005, rel=0.05)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_fails(reference, value):
    right = reference.expected["retrieval"]
    scores = right.scores.copy()
    scores[3, 0] = value
    with pytest.raises(CompileError, match=r"retrieval  score_error.* inf .*user 3, item"):
        gate(
            reference, answering(reference, retrieval=Ranked(right.items, scores)), "engine", BOUNDS
        )


def test_scores_of_negative_keys_are_compared_too(reference):
    right = reference.expected["recommend"]
    right.items[:] = -2 - right.items
    off = Ranked(right.items, right.scores + np.float32(0.5))
    with pytest.raises(CompileError, match="recommend  score_error"):
        gate(reference, answering(reference, recommend=off), "engine", BOUNDS)


@pytest.mark.parametrize(("gap", "identical"), [(0.0005, 1.0), (0.01, 0.0)])
def test_items_may_swap_only_when_eager_scores_them_alike(reference, gap, identical):
    right = reference.expected["recommend"]
    right.scores[:] = np.arange(K)[::-1]
    right.scores[:, 1] = right.scores[:, 0] - gap
    swapped = [1, 0, 2, 3, 4]
    found = Ranked(right.items[:, swapped], right.scores[:, swapped])
    row = measure(reference, answering(reference, recommend=found), "engine", BOUNDS)[1].row
    assert (row.identical_top_k, row.score_error) == (identical, 0)


@pytest.mark.parametrize(("place", "identical"), [(K - 1, 1.0), (0, 0.0)])
def test_an_item_that_eager_left_out_may_only_tie_with_the_end_of_its_list(
    reference, place, identical
):
    right = reference.expected["recommend"]
    right.scores[:] = np.arange(K)[::-1]
    items = right.items.copy()
    items[:, place] = 77
    found = Ranked(items, right.scores)
    row = measure(reference, answering(reference, recommend=found), "engine", BOUNDS)[1].row
    assert row.identical_top_k == identical


def test_padding_is_identical_to_padding_only(reference):
    right = reference.expected["recommend"]
    right.items[:, -1], right.scores[:, -1] = -1, -np.inf
    rows = gate(reference, answering(reference), "engine", BOUNDS)
    assert (rows[1].identical_top_k, rows[1].score_error) == (1, 0)
    items = right.items.copy()
    items[:, -1] = 77
    found = Ranked(items, np.where(np.isinf(right.scores), 0, right.scores))
    with pytest.raises(CompileError, match="place 4: expected item -1, found 77"):
        gate(reference, answering(reference, recommend=found), "engine", BOUNDS)


def test_an_answer_of_another_size_is_refused(reference):
    short = Ranked(*(array[:, :3] for array in vars(reference.expected["recommend"]).values()))
    with pytest.raises(CompileError, match=r"recommend: expected answers of shape \(100, 5\)"):
        gate(reference, answering(reference, recommend=short), "engine", BOUNDS)
