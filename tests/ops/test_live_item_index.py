import gc
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from recengine import _ops, ops
from recengine.errors import InputError, RecengineError


class Model:
    """What a LiveItemIndex should hold; its oracle is an ItemIndex of the live vectors."""

    def __init__(self, vectors):
        self.vectors = dict(enumerate(vectors))
        self.rows = len(vectors)
        self.dim = vectors.shape[1]
        self.index = None  # of the live vectors, until the next write

    def append(self, vectors):
        first = self.rows
        self.vectors.update(enumerate(vectors, first))
        self.rows += len(vectors)
        self.index = None
        return first

    def replace(self, rows, vectors):
        self.vectors.update(zip(rows, vectors, strict=True))
        self.index = None

    def remove(self, rows):
        for row in rows:
            del self.vectors[row]
        self.index = None

    def live(self):
        return sorted(self.vectors)

    def removed(self):
        return sorted(set(range(self.rows)) - set(self.vectors))

    def search(self, queries, k, exclude=None, allow=None):
        rows = np.array(self.live(), int)
        if self.index is None:
            vectors = np.array([self.vectors[row] for row in rows], np.float32)
            self.index = ops.ItemIndex(vectors.reshape(-1, self.dim))
        if exclude is not None:
            exclude = [np.flatnonzero(np.isin(rows, excluded)) for excluded in exclude]
        positions, scores = ops.cosine_topk(
            self.index,
            queries,
            k,
            exclude=exclude,
            allow=None if allow is None else allow[rows],
        )
        padded = np.append(rows, -1)  # position -1 is padding
        return padded[positions], scores


def assert_same(found, expected):
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def cosines(queries, vectors):
    def unit(values):
        values = np.asarray(values, np.float64)
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        return values / np.where(norms > 0, norms, 1)

    return unit(queries) @ unit(vectors).T


def assert_best_in_fp64(model, found, queries, exclude, allow):
    """No item that may be answered with and was not has a score above the worst answer."""
    rows = np.array([row for row in model.live() if allow is None or allow[row]], int)
    vectors = np.array([model.vectors[row] for row in rows]).reshape(-1, model.dim)
    for q, scores in enumerate(cosines(queries, vectors)):
        wanted = ~np.isin(rows, [] if exclude is None else exclude[q])
        answered = np.isin(rows, found[0][q])
        count = min(found[0].shape[1], wanted.sum())
        assert (found[0][q] >= 0).sum() == answered.sum() == count
        assert not (answered & ~wanted).any()
        if count > 0:
            assert (scores[wanted & ~answered] <= scores[answered].min() + 1e-6).all()


class LiveItemIndexMachine(RuleBasedStateMachine):
    """Small integer vectors: scores are often equal, between the base and what came later too.

    All steps of a run write too little for a merge to begin by itself.
    """

    @initialize(rows=st.integers(0, 90), dim=st.sampled_from([1, 3, 16, 33]), seed=st.integers(0))
    def build(self, rows, dim, seed):
        self.rng = np.random.default_rng(seed)
        self.dim = dim
        vectors = self.draw_vectors(rows)
        self.model = Model(vectors)
        self.live = ops.LiveItemIndex(vectors)
        self.pending = 0
        self.packed = rows

    def draw_vectors(self, count):
        return self.rng.integers(-1, 2, (count, self.dim)).astype(np.float32)

    def draw_live(self, most):
        live = self.model.live()
        return self.rng.permutation(live)[: self.rng.integers(0, most + 1)].astype(int)

    @rule(count=st.integers(0, 70))
    def append(self, count):
        vectors = self.draw_vectors(count)
        assert self.live.append(vectors) == self.model.append(vectors)
        self.pending += count

    @rule(most=st.sampled_from([1, 5, 70]))
    def replace(self, most):
        rows = self.draw_live(most)
        vectors = self.draw_vectors(len(rows))
        self.live.replace(rows, vectors)
        self.model.replace(rows, vectors)
        self.pending += len(rows)

    @rule(most=st.sampled_from([1, 5, 1000]))
    def remove(self, most):
        rows = self.draw_live(most)
        self.live.remove(rows)
        self.model.remove(rows)

    @rule()
    def merge(self):
        self.live.merge()
        self.pending = 0
        self.packed = len(self.model.vectors)

    @rule(kind=st.sampled_from(["outside", "negative", "removed", "repeated"]), data=st.data())
    def write_with_a_wrong_row(self, kind, data):
        rows = self.draw_live(5).tolist()
        wrong = {
            "outside": [self.model.rows],
            "negative": [-1],
            "removed": self.rng.permutation(self.model.removed())[:1].astype(int).tolist(),
            "repeated": rows[:1],
        }[kind]
        if not wrong:
            return
        place = len(rows) if kind == "repeated" else data.draw(st.integers(0, len(rows)))
        rows[place:place] = wrong
        message = rf"rows\[{place}\]: expected .*, found {wrong[0]}$"
        with pytest.raises(InputError, match=message):
            self.live.remove(rows)
        with pytest.raises(InputError, match=message):
            self.live.replace(rows, self.draw_vectors(len(rows)))

    @rule(count=st.integers(1, 5), value=st.sampled_from([np.nan, np.inf]))
    def write_a_value_that_is_not_finite(self, count, value):
        rows = self.draw_live(5)
        for call in (self.live.append, lambda vectors: self.live.replace(rows, vectors)):
            vectors = self.draw_vectors(len(rows) if call != self.live.append else count)
            if len(vectors) > 0:
                vectors[-1, -1] = value
                with pytest.raises(InputError, match=f"vectors: row {len(vectors) - 1}: expected"):
                    call(vectors)

    @rule(
        k=st.sampled_from([1, 3, 20, 300]),
        batch=st.integers(0, 3),
        excluded=st.sampled_from([None, 0.1, 0.9, 1]),
        allowed=st.sampled_from([None, 0, 0.02, 0.5, 0.98, 1]),
        threads=st.integers(1, 2),
        isa=st.sampled_from(ops.supported_isas()),
    )
    def search(self, k, batch, excluded, allowed, threads, isa):
        queries = self.draw_vectors(batch)
        exclude = allow = None
        if excluded is not None:  # of all rows: those in the delta and those removed as well
            every = np.arange(self.model.rows)
            exclude = [every[self.rng.random(len(every)) < excluded] for _ in range(batch)]
        if allowed is not None:
            allow = self.rng.random(self.model.rows) < allowed
        *found, _ = ops.certified_topk(
            self.live,
            queries,
            k,
            exclude=exclude,
            allow=allow,
            threads=threads,
            isa=isa,
            check=True,
        )
        assert_same(found, self.model.search(queries, k, exclude, allow))
        assert_best_in_fp64(self.model, found, queries, exclude, allow)

    @invariant()
    def counts(self):
        assert self.live.rows == self.model.rows
        assert self.live.size == len(self.model.vectors)
        assert self.live.dim == self.dim
        assert self.live.packed == self.packed
        assert self.live.pending == self.pending


LiveItemIndexMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=30)
TestAnyOrderOfCalls = LiveItemIndexMachine.TestCase


def assert_answers_as_model(live, model, rng):
    """All ways to search: by codes, by vectors (k is large) and by few allowed rows."""
    queries = rng.integers(-2, 3, (4, model.dim)).astype(np.float32)
    exclude = [rng.integers(0, model.rows, model.rows // 3) for _ in queries]
    for k, share in [(1, 0.9), (30, None), (30, 0.5), (30, 0.01), (model.rows // 16, 0.9)]:
        allow = None if share is None else rng.random(model.rows) < share
        for excluded in (None, exclude):
            expected = model.search(queries, k, excluded, allow)
            limits = {"exclude": excluded, "allow": allow}
            for isa, threads in itertools.product(ops.supported_isas(), (1, 2)):
                found = ops.cosine_topk(live, queries, k, isa=isa, threads=threads, **limits)
                assert_same(found, expected)


def test_a_base_that_is_searched_by_codes_answers_as_one_built_anew():
    rng = np.random.default_rng(1)
    vectors = rng.integers(-2, 3, (20_000, 32)).astype(np.float32)
    live, model = ops.LiveItemIndex(vectors), Model(vectors)
    for step in range(2):
        more = rng.integers(-2, 3, (700, 32)).astype(np.float32)
        more[:300] = vectors[rng.integers(0, 20_000, 300)]
        assert live.append(more) == model.append(more)
        assert_answers_as_model(live, model, rng)
        removed = rng.choice(model.live(), 2000, replace=False)
        live.remove(removed)
        model.remove(removed)
        replaced = rng.choice(model.live(), 900, replace=False)
        others = vectors[rng.integers(0, 20_000, 900)]
        live.replace(replaced, others)
        model.replace(replaced, others)
        assert_answers_as_model(live, model, rng)
        if step == 0:
            assert live.pending == 1600
            live.merge()
            assert (live.packed, live.pending) == (live.size, 0)
            assert_answers_as_model(live, model, rng)


def test_a_base_of_which_bounds_are_guessed_twice_answers_as_one_built_anew():
    rng = np.random.default_rng(16)
    vectors = rng.standard_normal((34_000, 20), dtype=np.float32)
    live, model = ops.LiveItemIndex(vectors), Model(vectors)
    removed = rng.choice(34_000, 600, replace=False)
    live.remove(removed)
    model.remove(removed)
    live.merge()
    more = rng.standard_normal((50, 20), dtype=np.float32)
    live.append(more)
    model.append(more)
    queries = np.concatenate([more[:5], rng.standard_normal((6, 20), dtype=np.float32)])
    near = [model.search(queries[i : i + 1], 300)[0][0] for i in range(len(queries))]
    # What is near, what waits behind the base, and rows that are no more.
    exclude = [
        np.concatenate([rows[:60], [34_000 + i], removed[:9]]) for i, rows in enumerate(near)
    ]
    allow = rng.random(model.rows) < 0.6
    for limits in ({}, {"exclude": exclude}, {"exclude": exclude, "allow": allow}):
        assert_same(
            ops.cosine_topk(live, queries, 100, **limits), model.search(queries, 100, **limits)
        )


def test_a_large_delta_is_searched_by_several_threads(isa):
    rng = np.random.default_rng(2)
    live = ops.LiveItemIndex(np.empty((0, 100)))
    vectors = rng.integers(-1, 2, (4000, 100)).astype(np.float32)
    live.append(vectors)
    queries = rng.integers(-1, 2, (70, 100)).astype(np.float32)
    assert live.pending == 4000
    for k in (10, 4001):
        found = ops.cosine_topk(live, queries, k, threads=3, isa=isa)
        assert_same(found, ops.cosine_topk(vectors, queries, k))


def test_equal_items_of_base_and_delta_are_answered_by_lower_row(isa):
    live = ops.LiveItemIndex(np.ones((50, 7)))
    live.append(np.ones((50, 7)))
    live.replace([70, 3, 20], np.ones((3, 7)))  # no longer in ascending order in the delta
    live.remove([0, 60])
    expected = [row for row in range(100) if row not in (0, 60)]
    for k in (2, 19, 60, 98):
        rows, scores = ops.cosine_topk(live, np.ones((2, 7)), k, isa=isa)
        assert rows.tolist() == [expected[:k]] * 2
        assert (scores == scores[0, 0]).all()


def test_more_equal_items_in_the_delta_than_are_kept(isa):
    live = ops.LiveItemIndex(np.empty((0, 3)))
    live.append(np.ones((3000, 3)))
    order = np.random.default_rng(3).permutation(3000)
    for rows in np.split(order, 3):
        live.replace(rows, np.ones((1000, 3)))
    rows, _ = ops.cosine_topk(live, np.ones((1, 3)), 20, isa=isa)
    assert rows[0].tolist() == list(range(20))


def test_zero_vectors_score_zero_wherever_they_are():
    live = ops.LiveItemIndex([[1.0, 0], [0, 0]])
    live.append([[0.0, 0], [-1, 0]])
    live.replace([0], [[0.0, 0]])
    for _ in range(2):
        rows, scores = ops.cosine_topk(live, [[1.0, 0], [0, 0]], 5)
        assert rows.tolist() == [[0, 1, 2, 3, -1]] * 2
        assert scores.tolist() == [[0, 0, 0, -1, -np.inf], [0, 0, 0, 0, -np.inf]]
        live.merge()


def test_an_index_without_items_answers_with_padding():
    live = ops.LiveItemIndex(np.empty((0, 2)))
    for _ in range(3):
        rows, scores = ops.cosine_topk(live, np.ones((2, 2)), 3)
        assert (rows == -1).all()
        assert np.isneginf(scores).all()
        live.remove([live.append(np.ones((1, 2)))])
        live.merge()
    assert (live.rows, live.size) == (3, 0)


def test_a_removed_row_is_not_given_again():
    live = ops.LiveItemIndex(np.eye(3))
    live.remove([2])
    live.merge()
    assert live.append(np.eye(3)[2:]) == 3
    live.merge()
    assert ops.cosine_topk(live, np.eye(3), 1)[0].ravel().tolist() == [0, 1, 3]


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("row", [2, 5, 6])
def test_a_removed_row_is_not_live_for_writes(merged, row):
    live = ops.LiveItemIndex(np.eye(4))
    live.append(np.eye(4))
    live.replace([2, 5], np.ones((2, 4)))
    live.remove([row])
    if merged:
        live.merge()
    message = rf"rows\[1\]: expected a row not removed before, found {row}"
    with pytest.raises(InputError, match=message):
        live.remove([1, row])
    with pytest.raises(InputError, match=message):
        live.replace([1, row], np.ones((2, 4)))
    assert live.size == 7


def test_vectors_are_normalised_as_those_of_an_item_index():
    rng = np.random.default_rng(4)
    vectors, queries = rng.standard_normal((300, 24)) * 1e3, rng.standard_normal((3, 24))
    live = ops.LiveItemIndex(vectors[:100])
    live.append(vectors[100:])
    for _ in range(2):
        assert_same(
            ops.cosine_topk(live, queries, 300, threads=1),
            ops.cosine_topk(vectors, queries, 300, threads=1),
        )
        live.merge()


def test_a_certificate_covers_what_waits_for_a_merge():
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((20_000, 32), dtype=np.float32)
    queries = rng.standard_normal((3, 32), dtype=np.float32)
    live = ops.LiveItemIndex(vectors)
    base = ops.certified_topk(live, queries, 10)[2]
    live.append(queries)
    _, scores, certificate = ops.certified_topk(live, queries, 10)
    np.testing.assert_array_equal(certificate.threshold, scores[:, -1])
    np.testing.assert_array_equal(certificate.bound, base.bound)
    np.testing.assert_array_equal(certificate.survivors, base.survivors + 3)
    np.testing.assert_array_equal(certificate.scored, base.scored + 3)


def test_the_check_in_fp64_holds_an_answer_against_the_items_that_were_searched(monkeypatch):
    rng = np.random.default_rng(8)
    vectors = rng.standard_normal((20_000, 32), dtype=np.float32)
    live = ops.LiveItemIndex(vectors)
    live.append(vectors[:3])
    live.remove([5, 20_001])
    live.merge()
    live.append(2 * vectors[:1])
    live.replace([7], vectors[6:7])
    live.remove([2])
    search = _ops.cosine_topk_and_items

    def write_after_the_search(*call):
        found, rows, unit_vectors = search(*call)
        live.replace([0], vectors[1:2])
        live.remove([9, 20_000])
        live.merge()
        expected = np.delete(np.arange(20_004), [2, 5, 20_001])
        np.testing.assert_array_equal(rows, expected)
        every = np.concatenate([vectors, vectors[:3], vectors[:1]])
        every[7] = every[6]
        unit = ops.ItemIndex(every[rows]).unit_vectors
        np.testing.assert_array_equal(unit_vectors, unit)
        return found, rows, unit_vectors

    monkeypatch.setattr(_ops, "cosine_topk_and_items", write_after_the_search)
    rows, _, _ = ops.certified_topk(live, vectors[[0, 6]], 3, exclude=[[5], [5]], check=True)
    assert rows[0].tolist() == [0, 20_000, 20_003]
    assert rows[1, :2].tolist() == [6, 7]


def test_the_check_in_fp64_finds_a_wrong_answer_of_an_index_that_changes(monkeypatch):
    live = ops.LiveItemIndex(np.eye(4))
    live.append(np.eye(4))
    live.remove([0])
    search = _ops.cosine_topk_and_items

    def answer_with_what_was_removed(*call):
        found, *items = search(*call)
        found[0][0, 0] = 0
        return found, *items

    ops.certified_topk(live, np.eye(4)[:1], 2, check=True)
    monkeypatch.setattr(_ops, "cosine_topk_and_items", answer_with_what_was_removed)
    with pytest.raises(RecengineError, match="query 0: row 0 is no item"):
        ops.certified_topk(live, np.eye(4)[:1], 2, check=True)


def test_a_bitmap_for_fewer_rows_is_refused():
    live = ops.LiveItemIndex(np.ones((64, 2)))
    words = np.full(1, 2**64 - 1, np.uint64)
    assert ops.cosine_topk(live, np.ones((1, 2)), 1, allow=words)[0].tolist() == [[0]]
    live.append(np.ones((1, 2)))
    with pytest.raises(InputError, match="allow: expected 2 words, found 1"):
        ops.cosine_topk(live, np.ones((1, 2)), 1, allow=words)
    with pytest.raises(InputError, match=r"allow: expected shape \(65,\)"):
        ops.cosine_topk(live, np.ones((1, 2)), 1, allow=np.ones(64, bool))


@pytest.mark.parametrize("merged", [False, True])
def test_excluded_rows_are_checked_against_the_rows_of_the_moment(merged):
    live = ops.LiveItemIndex(np.eye(4))
    with pytest.raises(InputError, match=r"exclude_rows\[1\]: expected 0 to 3, found 4"):
        ops.cosine_topk(live, np.ones((1, 4)), 1, exclude=[[0, 4]])
    live.append(np.eye(4))
    live.remove([1])
    if merged:
        live.merge()
    rows, _ = ops.cosine_topk(live, np.eye(4)[:1], 8, exclude=[[4, 1, 4]])
    assert rows.tolist() == [[0, 2, 3, 5, 6, 7, -1, -1]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda live: live.append(np.ones((1, 3))), "vectors: expected dim 4, found 3"),
        (lambda live: live.append(np.ones(4)), "vectors: expected rank 2, found 1"),
        (lambda live: live.replace([0], np.ones((2, 4))), "vectors: expected rows 1, found 2"),
        (lambda live: live.replace([0], np.ones((1, 3))), "vectors: expected dim 4, found 3"),
        (lambda live: live.remove([[0]]), "rows: expected rank 1, found 2"),
        (lambda live: live.remove([0.5]), "rows: expected int64, found float64"),
        (lambda live: live.remove([5]), r"rows\[0\]: expected 0 to 3, found 5"),
        (lambda live: live.remove([2, 0, 2]), r"rows\[2\]: expected rows that differ, found 2"),
        (lambda live: ops.LiveItemIndex([[0, np.nan]]), "vectors: row 0: expected finite"),
    ],
)
def test_arguments_that_disagree_are_named(call, message):
    live = ops.LiveItemIndex(np.eye(4))
    with pytest.raises(InputError, match=message):
        call(live)
    assert (live.rows, live.size, live.pending) == (4, 4, 0)


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_merge_begins_by_itself_when_much_waits():
    rng = np.random.default_rng(6)
    vectors = rng.integers(-2, 3, (5000, 16)).astype(np.float32)
    live, model = ops.LiveItemIndex(vectors[:100]), Model(vectors[:100])
    live.append(vectors[100:4196])
    assert live.pending == 4096
    live.append(vectors[4196:])
    model.append(vectors[100:])
    wait_until(lambda: live.pending == 0)
    assert live.rows == 5000
    assert_answers_as_model(live, model, rng)


def test_a_merge_begins_by_itself_when_much_is_removed():
    rng = np.random.default_rng(7)
    vectors = rng.integers(-2, 3, (40_000, 16)).astype(np.float32)
    live, model = ops.LiveItemIndex(vectors), Model(vectors)
    removed = rng.permutation(40_000)[:5100]
    live.remove(removed[:5000])
    time.sleep(0.3)
    assert (live.packed, live.size) == (40_000, 35_000)  # an eighth may be dead
    live.remove(removed[5000:])
    model.remove(removed)
    wait_until(lambda: live.packed == live.size == 34_900)
    assert live.rows == 40_000
    assert_answers_as_model(live, model, rng)


def test_items_that_come_and_go_take_no_more_and_more_memory():
    live = ops.LiveItemIndex(np.empty((0, 8)))
    for step in range(10):
        first = live.append(np.ones((1000, 8)))
        live.remove(np.arange(first, first + 1000 - (step == 9)))
        live.merge()
    assert (live.packed, live.size, live.rows) == (1, 1, 10_000)
    assert ops.cosine_topk(live, np.ones((1, 8)), 2)[0].tolist() == [[9999, -1]]


def test_versions_of_one_row_that_pile_up_are_merged():
    live = ops.LiveItemIndex(np.eye(4))
    for _ in range(5000):
        live.replace([2], [[0.0, 0, 0, 1]])
    wait_until(lambda: live.pending < 4097)
    assert ops.cosine_topk(live, np.eye(4)[3:], 4)[0].tolist() == [[2, 3, 0, 1]]


def test_an_index_that_goes_while_it_merges_waits_for_that():
    live = ops.LiveItemIndex(np.empty((0, 64)))
    live.append(np.ones((50_000, 64)))
    del live
    gc.collect()


class Marker:
    """Three rows that one writer always replaces together.

    Each version has a score of its own for `query`, which is 0 for all other items.
    """

    versions = 300

    def __init__(self, live, dim, writer):
        angles = 0.5 + 0.002 * np.arange(self.versions + 1)
        self.vectors = np.zeros((self.versions + 1, dim), np.float32)
        self.vectors[:, 2 * writer] = np.cos(angles)
        self.vectors[:, 2 * writer + 1] = np.sin(angles)
        self.query = np.eye(dim, dtype=np.float32)[2 * writer : 2 * writer + 1]
        _, self.scores = ops.cosine_topk(self.vectors, self.query, self.versions + 1)
        assert len(set(self.scores[0])) == self.versions + 1
        self.live = live
        self.first = live.append(self.vectors[[0, 0, 0]])
        self.begun = self.ended = 0

    def write(self):
        rows = np.arange(self.first, self.first + 3)
        for version in range(1, self.versions + 1):
            self.begun = version
            self.live.replace(rows, self.vectors[[version] * 3])
            self.ended = version
            self.check(threads=1)

    def check(self, threads):
        """The rows are there once, all of one version, which is that of a moment of the search."""
        before = self.ended
        rows, scores = ops.cosine_topk(self.live, self.query, 3, threads=threads)
        after = self.begun
        assert rows.tolist() == [[self.first, self.first + 1, self.first + 2]]
        assert (scores == scores[0, 0]).all()
        (version,) = np.flatnonzero(self.scores[0] == scores[0, 0])
        assert before <= version <= after


def test_every_answer_is_that_of_one_moment_while_others_write():
    rng = np.random.default_rng(7)
    dim, writers = 32, 2
    items = rng.standard_normal((20_000, dim), dtype=np.float32)
    items[:, : 2 * writers] = 0
    live = ops.LiveItemIndex(items)
    markers = [Marker(live, dim, writer) for writer in range(writers)]
    done = threading.Event()
    rng_of_checks = np.random.default_rng(8)

    def append_and_remove():
        for step in range(60):
            more = rng.standard_normal((5000 if step % 20 == 0 else 30, dim), dtype=np.float32)
            more[:, : 2 * writers] = 0
            first = live.append(more)
            assert ops.cosine_topk(live, more[:1], 1)[0] == first
            live.remove(np.append(np.arange(first, first + len(more)), step))
            assert ops.cosine_topk(live, more[:1], 1)[0] < first

    def search(threads):
        while not done.is_set():
            for marker in markers:
                marker.check(threads)

    def check_in_fp64():
        while not done.is_set():
            exclude = [rng_of_checks.integers(0, 20_000, 50) for _ in range(2)]
            queries = rng_of_checks.standard_normal((2, dim), dtype=np.float32)
            ops.certified_topk(live, queries, 20, exclude=exclude, check=True)

    def merge():
        while not done.is_set():
            live.merge()
            time.sleep(0.005)

    with ThreadPoolExecutor(8) as pool:
        writing = [pool.submit(marker.write) for marker in markers]
        writing.append(pool.submit(append_and_remove))
        others = [pool.submit(search, threads) for threads in (1, 2, 3)]
        others += [pool.submit(merge), pool.submit(check_in_fp64)]
        try:
            for call in writing:
                call.result()
        finally:
            done.set()
        for call in others:
            call.result()
    live.merge()
    assert live.pending == 0
    assert live.size == 20_000 - 60 + 3 * writers
    # What was removed from the base while a merge was packing it has stayed removed.
    removed = np.arange(live.rows) < 60
    assert (ops.cosine_topk(live, items[:60], 1, allow=removed)[0] == -1).all()
    for marker in markers:
        assert marker.ended == marker.versions
        marker.check(threads=1)
