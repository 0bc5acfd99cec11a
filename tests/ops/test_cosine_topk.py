from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recengine import ops
from recengine._topk_check import check_against_fp64
from recengine.errors import InputError, RecengineError


def unit(vectors):
    """fp64 norm, summed in order; the quotient rounded to fp32."""
    wide = np.asarray(vectors, np.float32).astype(np.float64)
    norms = np.sqrt(np.cumsum(wide * wide, axis=1)[:, -1:])
    return (wide / np.where(norms > 0, norms, 1)).astype(np.float32)


def exact_scores(queries, vectors):
    """16 lanes of rounded products added in order, then the tree 8, 4, 2, 1: [batch, rows]."""
    pad = ((0, 0), (0, -queries.shape[1] % 16))
    queries, vectors = np.pad(unit(queries), pad), np.pad(unit(vectors), pad)
    columns = np.ascontiguousarray(vectors.T).reshape(-1, 16, len(vectors))
    scores = np.empty((len(queries), len(vectors)), np.float32)
    for row, query in enumerate(queries.reshape(len(queries), -1, 16, 1)):
        lanes = columns[0] * query[0]
        for values, factors in zip(columns[1:], query[1:], strict=True):
            lanes += values * factors
        for half in (8, 4, 2, 1):
            lanes = lanes[:half] + lanes[half:]
        scores[row] = lanes[0]
    return scores


def reference(vectors, queries, k, exclude=None, allow=None):
    scores = exact_scores(queries, vectors)
    rows = np.full((len(queries), k), -1)
    best = np.full((len(queries), k), -np.inf, np.float32)
    for q, row_scores in enumerate(scores):
        allowed = np.ones(len(vectors), bool) if allow is None else allow.copy()
        if exclude is not None:
            allowed[exclude[q]] = False
        allowed = np.flatnonzero(allowed)
        order = allowed[np.argsort(-row_scores[allowed], kind="stable")][:k]
        rows[q, : len(order)] = order
        best[q, : len(order)] = row_scores[order]
    return rows, best


def assert_same(found, expected):
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@st.composite
def searches(draw):
    """Small integer vectors, so that equal scores are common; exclude lists may repeat rows."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, dim, batch = draw(st.integers(1, 200)), draw(st.integers(1, 130)), draw(st.integers(1, 4))
    spread = draw(st.sampled_from([1, 2, 100]))
    vectors = rng.integers(-spread, spread + 1, (rows, dim)).astype(np.float32)
    queries = rng.integers(-spread, spread + 1, (batch, dim)).astype(np.float32)
    k = draw(st.integers(1, 2 * rows))
    exclude = None
    if draw(st.booleans()):
        exclude = [rng.integers(0, rows, draw(st.integers(0, 2 * rows))) for _ in range(batch)]
    allow = rng.random(rows) < draw(st.sampled_from([0, 0.1, 0.9])) if draw(st.booleans()) else None
    return vectors, queries, k, exclude, allow


@given(search=searches())
def test_rows_and_scores_equal_the_reference_to_the_bit(places, search):
    vectors, queries, k, exclude, allow = search
    expected = reference(*search)
    for place in places:
        found = place.cosine_topk(vectors, queries, k, exclude=exclude, allow=allow)
        assert_same(found, expected)


@pytest.mark.parametrize("dim", [1, 15, 16, 17, 31, 48, 64, 100, 130])
def test_scores_are_the_same_everywhere(place, dim):
    rng = np.random.default_rng(dim)
    vectors, queries = rng.standard_normal((333, dim)), rng.standard_normal((5, dim))
    assert_same(place.cosine_topk(vectors, queries, 333), reference(vectors, queries, 333))


def steep(rng, rows, dim):
    """Vectors around a mean, long along few directions that are no axes, as trained ones are."""
    turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    widths = 0.65 ** np.arange(dim)
    return ((rng.standard_normal((rows, dim)) * widths + widths / 2) @ turn).astype(np.float32)


def catalog(rng, kind, rows, dim):
    if kind == "steep":
        return steep(rng, rows, dim)
    if kind == "ties":
        return rng.integers(-1, 2, (rows, dim)).astype(np.float32)
    vectors = rng.standard_normal((rows, dim), dtype=np.float32)
    if kind == "decaying":
        vectors *= np.arange(1, dim + 1, dtype=np.float32) ** -0.5
    elif kind == "copies":  # more equal items than are wanted
        vectors = vectors[rng.integers(0, 40, rows)]
    elif kind == "spikes":  # that spoil the scale of their blocks
        vectors[rng.integers(0, rows, 50), rng.integers(0, dim, 50)] = 1e6
    elif kind == "zeros":
        vectors[rng.random(rows) < 0.7] = 0
    return vectors


@st.composite
def coded_searches(draw):
    """Catalogs large enough to be searched by codes: at least 2^19 values."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dim = draw(st.sampled_from([16, 17, 30, 64, 100, 257, 512]))
    rows = -(-(2**19) // dim) + draw(st.integers(0, 200))
    kind = draw(
        st.sampled_from(["gaussian", "decaying", "steep", "ties", "copies", "spikes", "zeros"])
    )
    if kind == "steep":
        rows = max(rows, 17_000)  # else there is no sample to find the directions from
    vectors = catalog(rng, kind, rows, dim)
    batch = draw(st.integers(1, 9))
    near = vectors[rng.integers(0, rows, batch)] + rng.standard_normal((batch, dim)) / 4
    queries = draw(st.sampled_from([near, rng.standard_normal((batch, dim)), 0 * near]))
    k = draw(st.sampled_from([1, 10, 100, rows // 32, rows // 32 + 1]))
    exclude = None
    if draw(st.booleans()):
        exclude = [rng.integers(0, rows, draw(st.integers(0, rows))) for _ in range(batch)]
    shares = [0, 0.001, 0.02, 0.05, 0.1, 0.9]
    allow = rng.random(rows) < draw(st.sampled_from(shares)) if draw(st.booleans()) else None
    return vectors, queries, k, exclude, allow


@settings(max_examples=settings.default.max_examples // 3)
@given(search=coded_searches(), threads=st.integers(1, 3), split=st.booleans())
def test_a_search_by_codes_equals_the_reference_to_the_bit(places, search, threads, split):
    vectors, queries, k, exclude, allow = search
    index, expected = ops.ItemIndex(vectors, split_codes=split), reference(*search)
    limits = {"exclude": exclude, "allow": allow}
    for place in places:
        assert_same(place.cosine_topk(index, queries, k, threads=threads, **limits), expected)


# What is the same in every place is made once: an index takes longer than searches of it.
@cache
def catalog_with_hits_side_by_side(dim, split):
    """An index, queries, and the right answer for the 20 best."""
    rng = np.random.default_rng(13)
    vectors = rng.standard_normal((9_000, dim), dtype=np.float32)
    vectors[200:300] = vectors[7]  # hits side by side, and ties beyond K
    queries = vectors[rng.integers(0, 9_000, 33)]
    queries[::5] = vectors[7]
    index = ops.ItemIndex(vectors, split_codes=split)
    return index, queries, reference(vectors, queries, 20)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("dim", [60, 64, 100, 128])  # fill a tile's row in part, in full, and two
def test_every_number_of_queries_that_are_scanned_together(isa, dim, split):
    index, queries, (rows, scores) = catalog_with_hits_side_by_side(dim, split)
    for batch in range(1, 34):
        found = ops.cosine_topk(index, queries[:batch], 20, isa=isa)
        assert_same(found, (rows[:batch], scores[:batch]))


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("batch", [1, 9, 16])
def test_products_of_the_longest_codes_fit_their_sums(isa, batch, split):
    vectors = np.ones((100, 1 << 14), np.float32)
    vectors[::3] = -1
    vectors[1::3, ::2] = -1
    queries = np.repeat([[1.0], [-1.0]], 1 << 14, axis=1).astype(np.float32)[np.arange(batch) % 2]
    found = ops.cosine_topk(ops.ItemIndex(vectors, split_codes=split), queries, 2, isa=isa)
    assert_same(found, reference(vectors, queries, 2))


@pytest.mark.parametrize("split", [False, True])
def test_items_along_a_query_of_one_sign_are_not_lost_to_an_overflow(isa, split):
    rng = np.random.default_rng(17)
    vectors = rng.choice(np.float32([-1, 1]), (9_000, 64))  # codes as large as they get
    vectors[[4_000, 8_000]], vectors[[4_100, 8_100]] = 1, -1
    queries = np.ones((13, 64), np.float32)
    queries[1::2] = -1
    queries[2::3, 16:] *= 0.01
    found = ops.cosine_topk(ops.ItemIndex(vectors, split_codes=split), queries, 3, isa=isa)
    assert_same(found, reference(vectors, queries, 3))


def test_a_certificate_proves_the_answer_in_fp64(place):
    rng = np.random.default_rng(9)
    vectors = rng.standard_normal((40_000, 48), dtype=np.float32)
    queries = rng.standard_normal((5, 48), dtype=np.float32)
    rows, scores, certificate = place.certified_topk(vectors, queries, 20)
    exact = unit(queries).astype(np.float64) @ unit(vectors).astype(np.float64).T
    np.testing.assert_array_equal(certificate.threshold, scores[:, -1])
    assert ((certificate.bound > 0) & (certificate.bound < 0.05)).all()
    # Far fewer than all were scored, and yet nothing in fp64 beats what was found.
    assert ((certificate.scored >= 20) & (certificate.scored < 800)).all()
    assert ((certificate.survivors >= 20) & (certificate.survivors <= certificate.scored)).all()
    np.put_along_axis(exact, rows, -np.inf, axis=1)
    assert (exact.max(axis=1) < certificate.threshold + 1e-6).all()


def near_duplicates(rng, rows, dim):
    """Items that differ in the last bits of fp32."""
    kinds = rng.standard_normal((50, dim), dtype=np.float32)[rng.integers(0, 50, rows)]
    return kinds * (1 + rng.integers(-4, 5, (rows, dim)) * np.float32(2**-23))


def huge_norm_spread(rng, rows, dim):
    lengths = 10.0 ** rng.integers(-30, 31, (rows, 1))
    return (rng.standard_normal((rows, dim)) * lengths).astype(np.float32)


def huge_spread_within(rng, rows, dim):
    """A few components are all of an item, and of its scale."""
    return (rng.standard_normal((rows, dim)) * 10.0 ** rng.integers(-8, 1, (rows, dim))).astype(
        np.float32
    )


def all_equal_scores(rng, rows, dim):
    """Any query of equal components scores every item the same."""
    signs = np.ones((rows, dim), np.float32)
    signs[:, : dim // 4] = -1
    return rng.permuted(signs, axis=1)


def denormals(rng, rows, dim):
    vectors = rng.standard_normal((rows, dim)) * 1e-39
    vectors[::3, 0] = 1  # beside which the others round to nothing
    return vectors.astype(np.float32)


def one_hot(rng, rows, dim):
    vectors = np.zeros((rows, dim), np.float32)
    vectors[np.arange(rows), rng.integers(0, dim, rows)] = rng.choice(np.float32([-1, 1]), rows)
    return vectors


def saturated_codes(rng, rows, dim):
    """Every component is the largest of its item: codes of -127 and 127, or half a step less."""
    vectors = rng.choice(np.float32([-1, 1]), (rows, dim))
    vectors[::2] *= 1 - rng.integers(0, 2, (len(vectors[::2]), dim)) * np.float32(0.5 / 127)
    return vectors


ADVERSARIES = [
    near_duplicates,
    huge_norm_spread,
    huge_spread_within,
    all_equal_scores,
    denormals,
    one_hot,
    saturated_codes,
]


@cache
def adversarial(draw):
    """Vectors, an index of them with codes, queries, and the right answer for the 40 best."""
    rng = np.random.default_rng(14)
    vectors = draw(rng, (1 << 19) // 64 + 100, 64)
    near = vectors[rng.integers(0, len(vectors), 6)]
    queries = np.concatenate([near, np.ones((1, 64)), rng.standard_normal((2, 64)), -near[:2]])
    queries[3] += near[4]
    queries = queries.astype(np.float32)
    return vectors, ops.ItemIndex(vectors), queries, reference(vectors, queries, 40)


@pytest.mark.parametrize("draw", ADVERSARIES)
@pytest.mark.parametrize("asked", [slice(0, 1), slice(6, 7), slice(7, 8), slice(0, 11)])
def test_certificates_hold_for_adversarial_items(place, draw, asked):
    vectors, index, queries, expected = adversarial(draw)
    check = {} if place.isa is None else {"check": True}
    rows, scores, certificate = place.certified_topk(index, queries[asked], 40, **check)
    assert_same((rows, scores), (expected[0][asked], expected[1][asked]))
    if place.isa is None:  # all are scored where more look alike than there is room for
        return
    np.testing.assert_array_equal(certificate.threshold, scores[:, -1])
    assert (certificate.bound > 0).all()  # searched by codes
    # Where every item may be among the best, another round scores them again.
    assert ((certificate.scored >= 40) & (certificate.scored <= 2 * len(vectors))).all()


@cache
def steep_catalog():
    vectors = steep(np.random.default_rng(4), 40_000, 64)
    return vectors, ops.ItemIndex(vectors)


def test_what_a_partial_scan_leaves_out_is_proven_in_fp64(isa):
    vectors, index = steep_catalog()
    assert index.partial_scans
    assert all(0 < dims < 64 for dims in index.partial_scans)
    queries = steep(np.random.default_rng(4), 6, 64)
    rows, scores, certificate = ops.certified_topk(index, queries, 20, isa=isa)
    assert_same((rows, scores), reference(vectors, queries, 20))
    assert (certificate.scored < 8_000).all()
    exact = unit(queries).astype(np.float64) @ unit(vectors).astype(np.float64).T
    np.put_along_axis(exact, rows, -np.inf, axis=1)
    assert (exact.max(axis=1) < certificate.threshold + 1e-6).all()


@cache
def coarse_catalog(dim):
    """Vectors, of which few may be near a query by the high bits of their codes; what two queries
    exclude, what is allowed, and an index."""
    rng = np.random.default_rng(dim)
    vectors = rng.standard_normal((160_000, dim), dtype=np.float32)
    vectors[7_000:7_003] = vectors[5]
    queries = vectors[[5, 60]]
    exclude = [rng.integers(0, 160_000, 300), np.array([60, 61])]
    allow = rng.random(160_000) < 0.8
    return vectors, queries, exclude, allow, ops.ItemIndex(vectors, split_codes=True)


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dim", [12, 14])  # three steps, and four with a part of one
def test_what_a_coarse_scan_leaves_out_is_proven_in_fp64(isa, dim, batch, limited):
    vectors, queries, exclude, allow, index = coarse_catalog(dim)
    queries = queries[:batch]
    limits = {"exclude": exclude[:batch], "allow": allow} if limited else {}
    rows, scores, certificate = ops.certified_topk(index, queries, 3, isa=isa, **limits)
    assert (certificate.bound > 0.1).all()  # that of four bits
    assert (certificate.scored < 400).all()
    assert_same((rows, scores), reference(vectors, queries, 3, **limits))
    exact = unit(queries).astype(np.float64) @ unit(vectors).astype(np.float64).T
    if limited:
        exact[:, ~allow] = -np.inf
        for q, excluded in enumerate(exclude[:batch]):
            exact[q, excluded] = -np.inf
    np.put_along_axis(exact, rows, -np.inf, axis=1)
    assert (exact.max(axis=1) < certificate.threshold + 1e-6).all()


@pytest.mark.parametrize(
    ("kind", "rows", "dim", "split"),
    [
        ("gaussian", 600_000, 56, True),
        ("gaussian", 500_000, 56, False),  # less than 32 MiB
        ("gaussian", 350_000, 96, False),  # a coarse scan leaves too many
        ("steep", 600_000, 56, False),  # a partial scan reads less
    ],
)
def test_codes_are_split_where_that_pays(kind, rows, dim, split):
    vectors = catalog(np.random.default_rng(1), kind, rows, dim)
    index = ops.ItemIndex(vectors)
    assert index.split_codes == split
    queries = vectors[:3]
    found = ops.cosine_topk(index, queries, 10)
    assert_same(found, ops.cosine_topk(ops.ItemIndex(vectors, split_codes=not split), queries, 10))


@cache
def crowded_catalog():
    """Vectors, an index of them, queries that are like none of them, and the right answers."""
    rng = np.random.default_rng(6)
    kinds = rng.standard_normal((200, 64), dtype=np.float32)
    vectors = kinds[rng.integers(0, 200, 40_000)]
    vectors += rng.standard_normal(vectors.shape, dtype=np.float32) / 1000
    queries = rng.standard_normal((5, 64), dtype=np.float32)
    return ops.ItemIndex(vectors), queries, reference(vectors, queries, 10)


def test_queries_unlike_the_items_do_not_make_a_partial_scan_score_everything(isa):
    index, queries, expected = crowded_catalog()
    assert index.partial_scans  # for items, which have two hundred others next to them
    for query, best_rows, best_scores in zip(queries, *expected, strict=True):
        rows, scores, certificate = ops.certified_topk(index, query[None], 10, isa=isa)
        assert_same((rows[0], scores[0]), (best_rows, best_scores))
        assert certificate.scored[0] < 4_000


@cache
def steep_catalog_with_ties(split):
    """An index; queries, what each excludes, what is allowed, and the right answer for 50."""
    rng = np.random.default_rng(5)
    vectors = steep(rng, 20_000, 64)
    vectors[5000:5100] = vectors[3]  # ties beyond K
    queries = vectors[rng.integers(0, 20_000, 100)]
    queries[0] = vectors[3]
    exclude = [rng.integers(0, 20_000, 200) for _ in queries]
    allow = rng.random(20_000) < 0.7
    expected = reference(vectors, queries, 50, exclude, allow)
    return ops.ItemIndex(vectors, split_codes=split), queries, exclude, allow, expected


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 7, 64, 100])
def test_partial_scans_of_every_batch_exclude_and_allow(place, batch, split):
    index, queries, exclude, allow, (rows, scores) = steep_catalog_with_ties(split)
    assert index.partial_scans
    found = place.cosine_topk(index, queries[:batch], 50, exclude=exclude[:batch], allow=allow)
    assert_same(found, (rows[:batch], scores[:batch]))


def test_partial_scans_of_many_dimensions():
    rng = np.random.default_rng(6)
    vectors = steep(rng, 101_000, 272)  # enough that they are worth their axes
    index = ops.ItemIndex(vectors)
    assert index.partial_scans
    assert_same(ops.cosine_topk(index, vectors[:3], 50), reference(vectors, vectors[:3], 50))


@pytest.mark.parametrize("batch", [1, 9, 100])
@pytest.mark.parametrize("half", [False, True])
def test_a_few_allowed_items_are_scored_by_themselves_for_every_query(isa, half, batch):
    rng = np.random.default_rng(7)
    vectors = rng.integers(-2, 3, (20_000, 30)).astype(np.float32)
    index = ops.ItemIndex(vectors)
    if half:
        index = ops.ItemIndex.from_unit_vectors(index.unit_vectors.astype(np.float16))
    scanned = ops.ItemIndex.from_unit_vectors(index.unit_vectors.astype(np.float32))
    queries = rng.integers(-2, 3, (batch, 30)).astype(np.float32)
    exclude = [rng.integers(0, 20_000, 3000) for _ in range(batch)]
    allow = rng.random(20_000) < 0.01
    exclude[0] = np.flatnonzero(allow)[5:]
    rows, scores, certificate = ops.certified_topk(
        index, queries, 40, exclude=exclude, allow=allow, isa=isa
    )
    others = [np.union1d(rows, np.flatnonzero(~allow)) for rows in exclude]
    assert_same((rows, scores), ops.cosine_topk(scanned, queries, 40, exclude=others, isa=isa))
    assert (rows[0, :5] >= 0).all()
    assert (rows[0, 5:] == -1).all()
    assert (certificate.scored == allow.sum()).all()
    assert (certificate.survivors == allow.sum()).all()


@pytest.mark.parametrize("half", [False, True])
def test_for_many_queries_the_few_allowed_items_are_packed(isa, half):
    rng = np.random.default_rng(29)
    vectors = rng.standard_normal((20_000, 30), dtype=np.float32)
    vectors[5000:5300] = vectors[0]  # which tie
    index = ops.ItemIndex(vectors)
    if half:
        units = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
        index, vectors = ops.ItemIndex.from_unit_vectors(units), units.astype(np.float32)
    queries = rng.standard_normal((200, 30), dtype=np.float32)
    queries[0] = vectors[0]
    allow = rng.random(20_000) < 0.1
    exclude = [rng.integers(0, 20_000, 300) for _ in queries]
    exclude[1] = np.flatnonzero(allow)[5:]
    rows, scores, certificate = ops.certified_topk(
        index, queries, 40, exclude=exclude, allow=allow, isa=isa, check=True
    )
    others = [np.union1d(few, np.flatnonzero(~allow)) for few in exclude]
    expected = ops.cosine_topk(index, queries, 40, exclude=others, isa="portable")
    np.testing.assert_array_equal(rows, expected[0])
    np.testing.assert_array_equal(scores, expected[1])
    if isa == "portable":  # whose products of codes take longer
        assert (certificate.scored == allow.sum()).all()
        return
    # Not by the codes of all items, whose bound is another.
    of_all = ops.certified_topk(index, queries, 40, exclude=others, isa=isa)[2]
    assert (certificate.bound != of_all.bound).all()
    assert (certificate.scored[2:] < 0.5 * allow.sum()).all()


def test_more_allowed_items_than_are_packed_for_so_many_answers_are_searched_among_all(isa):
    rng = np.random.default_rng(31)
    vectors = rng.standard_normal((50_000, 32), dtype=np.float32)
    allow = rng.random(50_000) < 0.12
    k = int(allow.sum()) // 32 + 1
    rows, scores, certificate = ops.certified_topk(
        ops.ItemIndex(vectors), vectors[:150], k, allow=allow, isa=isa
    )
    assert_same((rows, scores), reference(vectors, vectors[:150], k, allow=allow))
    if isa in ("avx512_vnni", "amx_int8"):  # others score them by themselves as fast
        assert (certificate.scored < allow.sum()).all()


@pytest.mark.parametrize("packed", [False, True])
def test_the_check_in_fp64_takes_what_a_search_takes(isa, packed):
    rng = np.random.default_rng(11)
    vectors = steep(rng, 20_000, 40)
    allow = rng.random(20_000) < 0.5
    exclude = [rng.integers(0, 20_000, 300) for _ in range(5)]
    found = ops.certified_topk(
        vectors,
        vectors[:5],
        30,
        exclude=(np.concatenate(exclude), [300] * 5) if packed else exclude,
        allow=np.packbits(np.pad(allow, (0, 32)), bitorder="little").view("<u8")
        if packed
        else allow,
        isa=isa,
        check=True,
    )
    assert_same(found[:2], reference(vectors, vectors[:5], 30, exclude, allow))
    halves = ops.ItemIndex.from_unit_vectors(unit(vectors).astype(np.float16))
    ops.certified_topk(halves, vectors[:5], 30, exclude=exclude, allow=allow, isa=isa, check=True)
    ops.certified_topk(np.eye(4), np.ones((2, 4)), 9, check=True)
    ops.certified_topk(np.eye(4), np.ones((2, 4)), 9, exclude=[], check=True)


def answer(**change):
    rng = np.random.default_rng(12)
    vectors = unit(rng.standard_normal((50, 8)))
    queries = rng.standard_normal((2, 8)).astype(np.float32)
    rows, scores = ops.cosine_topk(vectors, queries, 5)
    for name, (place, value) in change.items():
        {"rows": rows, "scores": scores}[name][place] = value
    return np.arange(50), vectors, queries, rows, scores


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": ((1, 2), 0.9)}, r"query 1: row \d+: expected score"),
        ({"rows": ((0, 4), -1)}, "query 0: expected 5 different items"),
        ({"scores": ((0, 0), np.nan)}, "query 0: expected scores that are numbers, found NaN"),
        ({"rows": ((0, slice(None)), [1, 1, 2, 3, 4])}, "query 0: expected 5 different items"),
        ({"rows": ((1, 3), 50)}, "query 1: row 50 is no item"),
    ],
)
def test_the_check_in_fp64_finds_what_is_wrong(change, message):
    none = [np.empty(0, np.int64)] * 2
    check_against_fp64(*answer(), none, None)
    with pytest.raises(RecengineError, match=message):
        check_against_fp64(*answer(**change), none, None)


def test_the_check_in_fp64_finds_what_is_missing_and_what_is_not_allowed():
    every, vectors, queries, rows, scores = answer()
    excluded = [rows[0, :1], np.empty(0, np.int64)]
    with pytest.raises(RecengineError, match=f"query 0: row {rows[0, 0]} is not allowed"):
        check_against_fp64(every, vectors, queries, rows, scores, excluded, None)
    others, scores = ops.cosine_topk(vectors, queries, 5, exclude=[rows[0, :1], []])
    with pytest.raises(
        RecengineError, match=rf"query 0: row {rows[0, 0]} with score .* is missing"
    ):
        check_against_fp64(
            every, vectors, queries, others, scores, [np.empty(0, np.int64)] * 2, None
        )


def test_the_check_in_fp64_knows_items_by_their_rows():
    places, vectors, queries, found, scores = answer()
    rows = 3 * places + 1  # with gaps, in which items were removed
    excluded = [np.array([0, 2, 200]), rows[found[0, :1]]]
    check_against_fp64(rows, vectors, queries, rows[found], scores, [excluded[0]] * 2, None)
    with pytest.raises(RecengineError, match=rf"query 0: row {found[0, 0]} is no item"):
        check_against_fp64(rows, vectors, queries, found, scores, [excluded[0]] * 2, None)
    with pytest.raises(RecengineError, match=rf"query 0: row {rows[found[0, 0]]} is not allowed"):
        check_against_fp64(rows, vectors, queries, rows[found], scores, excluded[::-1], None)


def test_a_catalog_without_short_axes_is_read_whole():
    rng = np.random.default_rng(6)
    assert ops.ItemIndex(rng.standard_normal((20_000, 64))).partial_scans == []
    assert ops.ItemIndex(np.zeros((20_000, 64))).partial_scans == []
    assert ops.ItemIndex(steep(rng, 9_000, 64)).partial_scans == []  # a sample would be half of it


def test_the_same_vectors_give_the_same_index():
    vectors = steep(np.random.default_rng(7), 20_000, 32)
    first, second = (
        ops.certified_topk(ops.ItemIndex(vectors), vectors[:9], 10)[2] for _ in range(2)
    )
    np.testing.assert_array_equal(first.bound, second.bound)


def test_a_small_catalog_is_scored_whole():
    _, _, certificate = ops.certified_topk(np.eye(4), np.ones((2, 4)), 9)
    assert certificate.scored.tolist() == [4, 4]
    assert certificate.bound.tolist() == [0, 0]
    assert np.isneginf(certificate.threshold).all()


@cache
def sampled_catalog(kind):
    """70,000 rows are enough for a sample; what it suggests for the third query is far too high."""
    rng = np.random.default_rng(8)
    if kind == "steep":
        vectors = steep(rng, 70_000, 32)
        queries = vectors[:4] + rng.standard_normal((4, 32), dtype=np.float32) / 50
    else:
        vectors = rng.standard_normal((70_000, 32), dtype=np.float32)
        queries = rng.standard_normal((4, 32), dtype=np.float32)
    sampled = (np.arange(70_000) // 64) % 33 == 16
    # All that comes near the third query is in the sample: the guess is far too high for k.
    vectors[sampled] += 5 * queries[2]
    allow = rng.random(70_000) < 0.5
    return ops.ItemIndex(vectors), queries, allow, reference(vectors, queries, 2000, allow=allow)


@pytest.mark.parametrize("kind", ["gaussian", "steep"])
def test_bounds_guessed_from_a_sample_do_not_change_the_answer(place, kind):
    index, queries, allow, (rows, scores) = sampled_catalog(kind)
    assert bool(index.partial_scans) == (kind == "steep")
    for k in (1, 100, 2000):
        for threads in place.thread_counts:
            found = place.cosine_topk(index, queries, k, allow=allow, threads=threads)
            assert_same(found, (rows[:, :k], scores[:, :k]))


@cache
def catalog_guessed_of_twice(kind):
    """Several queries guess again from every seventh block; for the third one that is too high."""
    rng = np.random.default_rng(9)
    rows = np.arange(33_000)
    vectors = catalog(rng, kind, len(rows), 20)
    queries = rng.standard_normal((9, 20), dtype=np.float32)
    # All that comes near the third query is in those blocks, and far enough apart to be counted.
    vectors[(rows // 64 % 7 == 0) & (rows % 16 == 0)] += 5 * queries[2]
    exclude = [rng.choice(rows, 200) for _ in queries]
    return ops.ItemIndex(vectors), queries, exclude, reference(vectors, queries, 270, exclude)


@pytest.mark.parametrize("kind", ["gaussian", "ties", "copies", "spikes", "steep"])
def test_bounds_guessed_again_do_not_change_the_answer(place, kind):
    index, queries, exclude, (rows, scores) = catalog_guessed_of_twice(kind)
    for k in (1, 100, 270):
        for threads in place.thread_counts:
            found = place.cosine_topk(index, queries, k, exclude=exclude, threads=threads)
            assert_same(found, (rows[:, :k], scores[:, :k]))
    if kind == "gaussian":
        *_, certificate = ops.certified_topk(index, queries, 270, exclude=exclude)
        others = np.delete(certificate.scored, 2)
        assert certificate.scored[2] > 2 * others.max()  # searched for again


@pytest.fixture(scope="module")
def large():
    rng = np.random.default_rng(2)
    vectors = rng.integers(-3, 4, (30_011, 64)).astype(np.float32)
    queries = rng.integers(-3, 4, (3, 64)).astype(np.float32)
    return vectors, ops.ItemIndex(vectors), queries


@pytest.mark.parametrize("k", [1, 100, 30_011])
def test_the_answer_does_not_depend_on_the_threads(place, large, k):
    vectors, index, queries = large
    exclude = [np.arange(0, 30_011, 3), np.empty(0, int), np.arange(15_000)]
    allow = np.ones(30_011, bool)
    allow[1000:9000] = False
    expected = reference(vectors, queries, k, exclude, allow)
    for threads in place.thread_counts:
        found = place.cosine_topk(index, queries, k, exclude=exclude, allow=allow, threads=threads)
        assert_same(found, expected)


@cache
def many_queries(rows):
    """An index, queries, what each excludes, and the right answer for the 10 best."""
    rng = np.random.default_rng(3)
    vectors, queries = rng.standard_normal((rows, 40)), rng.standard_normal((150, 40))
    exclude = [rng.integers(0, rows, 20) for _ in queries]
    return ops.ItemIndex(vectors), queries, exclude, reference(vectors, queries, 10, exclude)


# Items that are scored by their vectors, and by codes: of the second pass many queries, and few.
@pytest.mark.parametrize(("rows", "batch"), [(2_000, 150), (14_000, 150), (14_000, 130)])
def test_more_queries_than_one_pass_takes(place, rows, batch):
    index, queries, exclude, (best, scores) = many_queries(rows)
    found = place.cosine_topk(index, queries[:batch], 10, exclude=exclude[:batch], threads=2)
    assert_same(found, (best[:batch], scores[:batch]))


def test_equal_items_are_answered_by_lower_row(place):
    index = ops.ItemIndex(np.ones((70_000, 32)))
    for threads in place.thread_counts:
        rows, scores = place.cosine_topk(index, np.ones((2, 32)), 300, threads=threads)
        assert (rows == np.arange(300)).all()
        assert (scores == scores[0, 0]).all()


def test_topk_pads_when_fewer_items_than_k(place):
    rows, scores = place.cosine_topk(np.eye(2), [[1.0, 0.5]], 5)
    assert rows.tolist() == [[0, 1, -1, -1, -1]]
    assert np.isneginf(scores[0, 2:]).all()


def test_everything_excluded_or_nothing_allowed_is_all_padding(place):
    rng = np.random.default_rng(4)
    vectors, queries = rng.standard_normal((700, 16)), rng.standard_normal((2, 16))
    everything = (np.tile(np.arange(700), 2), [700, 700])
    for limits in ({"exclude": everything}, {"allow": np.zeros(700, bool)}):
        rows, scores = place.cosine_topk(vectors, queries, 3, **limits)
        assert (rows == -1).all()
        assert np.isneginf(scores).all()


def test_vectors_and_queries_of_zeros_score_zero(place):
    vectors = np.array([[1.0, 0], [0, 0], [-1, 0]])
    rows, scores = place.cosine_topk(vectors, [[2.0, 0], [0, 0]], 3)
    assert rows.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert scores.tolist() == [[1, 0, -1], [0, 0, 0]]


def test_no_items_and_no_queries_are_fine(place):
    rows, _ = place.cosine_topk(np.empty((0, 4)), np.ones((2, 4)), 3)
    assert (rows == -1).all()
    rows, _ = place.cosine_topk(np.ones((2, 4)), np.empty((0, 4)), 3)
    assert rows.shape == (0, 3)


def test_the_length_of_vectors_does_not_matter(place):
    rng = np.random.default_rng(5)
    vectors, queries = rng.standard_normal((50, 8)), rng.standard_normal((2, 8))
    expected = place.cosine_topk(vectors, queries, 50)
    assert_same(place.cosine_topk(vectors * 2.0**60, queries * 2.0**-60, 50), expected)
    assert_same(place.cosine_topk(vectors * 2.0**-70, queries * 2.0**90, 50), expected)


def test_a_packed_bitmap_means_the_same_as_a_mask():
    rng = np.random.default_rng(6)
    vectors, queries = rng.standard_normal((130, 8)), rng.standard_normal((2, 8))
    allow = rng.random(130) < 0.5
    words = np.zeros(3, np.uint64)
    for row in np.flatnonzero(allow):
        words[row // 64] |= np.uint64(1 << int(row) % 64)
    found = ops.cosine_topk(vectors, queries, 130, allow=words)
    assert_same(found, ops.cosine_topk(vectors, queries, 130, allow=allow))
    with pytest.raises(InputError, match="allow: expected 3 words, found 2"):
        ops.cosine_topk(vectors, queries, 1, allow=words[:2])
    with pytest.raises(InputError, match="allow: expected shape"):
        ops.cosine_topk(vectors, queries, 1, allow=allow[:2])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_queries_and_vectors_that_are_not_finite_are_refused_by_row(value):
    vectors = np.ones((4, 3))
    bad = vectors.copy()
    bad[2, 1] = value
    with pytest.raises(InputError, match="queries: row 2"):
        ops.cosine_topk(vectors, bad, 1)
    with pytest.raises(InputError, match="vectors: row 2"):
        ops.cosine_topk(bad, vectors, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": np.ones((1, 32))}, "queries: expected dim 4, found 32"),
        ({"queries": np.ones(4)}, "queries: expected rank 2, found 1"),
        ({"k": 0}, "k: expected at least 1, found 0"),
        ({"exclude": [[3], [0]]}, r"exclude_rows\[0\]: expected 0 to 2, found 3"),
        ({"exclude": [[0], [-1]]}, r"exclude_rows\[1\]: expected 0 to 2, found -1"),
        ({"exclude": [[0]]}, "exclude_lengths: expected batch 2, found 1"),
        ({"exclude": ([0, 1], [1, 2])}, r"exclude_lengths\[1\]: expected 0 to 1"),
        ({"exclude": ([0, 1], [1, -1])}, r"exclude_lengths\[1\].*found -1"),
        ({"exclude": ([0, 1], [1, 0])}, "expected to sum to 2, found 1"),
    ],
)
def test_arguments_that_disagree_are_named(arguments, message):
    call = {"queries": np.ones((2, 4)), "k": 1, **arguments}
    with pytest.raises(InputError, match=message):
        ops.cosine_topk(np.ones((3, 4)), call.pop("queries"), call.pop("k"), **call)


def test_many_python_threads_may_call_at_once(large):
    vectors, index, queries = large
    expected = reference(vectors, queries, 50)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(ops.cosine_topk, index, queries, 50, threads=3) for _ in range(64)]
        for call in calls:
            assert_same(call.result(), expected)
