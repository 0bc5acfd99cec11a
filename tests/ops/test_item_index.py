import subprocess
import sys
import textwrap
import tracemalloc

import numpy as np
import pytest

from recengine import ops
from recengine.errors import InputError


def test_vectors_are_normalised_once_at_build():
    vectors = np.random.default_rng(0).standard_normal((20, 5)) * 1e3
    index = ops.ItemIndex(vectors)
    assert (index.rows, index.dim) == (20, 5)
    np.testing.assert_allclose(np.linalg.norm(index.unit_vectors, axis=1), 1, rtol=1e-6)
    assert not index.unit_vectors.flags.writeable


def test_unit_vectors_are_borrowed_and_give_the_same_answers():
    vectors = np.random.default_rng(1).standard_normal((200, 24))
    built = ops.ItemIndex(vectors)
    borrowed = ops.ItemIndex.from_unit_vectors(built.unit_vectors)
    assert np.shares_memory(borrowed.unit_vectors, built.unit_vectors)
    for found, expected in zip(
        ops.cosine_topk(borrowed, vectors[:3], 9),
        ops.cosine_topk(built, vectors[:3], 9),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


def test_an_index_outlives_the_name_of_its_vectors():
    index = ops.ItemIndex.from_unit_vectors(np.eye(64, dtype=np.float32))
    view = index.unit_vectors
    del index
    assert (view == np.eye(64)).all()


def test_vectors_without_dimensions_are_refused():
    with pytest.raises(InputError, match="expected dim at least 1, found 0"):
        ops.ItemIndex(np.empty((3, 0)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_borrowed_vectors_that_cannot_be_coded_are_refused(value):
    vectors = np.zeros((9000, 64), np.float32)
    vectors[8999, 3] = value
    with pytest.raises(InputError, match="unit_vectors: expected finite values"):
        ops.ItemIndex.from_unit_vectors(vectors)


@pytest.mark.parametrize("size", [1e-37, 1e-30, 1e30])
def test_vectors_that_fp32_bounds_cannot_hold_are_searched_without_codes(size):
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((9000, 64)).astype(np.float32) * np.float32(size)
    query = rng.standard_normal((1, 64)).astype(np.float32)
    index = ops.ItemIndex.from_unit_vectors(vectors)
    rows, _, certificate = ops.certified_topk(index, query, 50)
    products = vectors.astype(np.float64) @ query[0].astype(np.float64)
    assert set(rows[0].tolist()) == set(np.argsort(-products)[:50].tolist())
    assert certificate.scored.tolist() == [9000]


def test_bounds_hold_for_borrowed_vectors_of_any_length(isa):
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((9000, 64), dtype=np.float32) * 3  # norms of about 24, not 1
    query = rng.standard_normal((1, 64), dtype=np.float32)
    index = ops.ItemIndex.from_unit_vectors(vectors)
    rows, scores = ops.cosine_topk(index, query, 50, isa=isa)
    products = vectors.astype(np.float64) @ (query[0] / np.linalg.norm(query[0]))
    assert rows[0].tolist() == np.argsort(-products)[:50].tolist()
    np.testing.assert_allclose(scores[0], np.sort(products)[::-1][:50], rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "dim", "decay"),
    [(300, 7, 0), (9000, 64, 0), (20_000, 48, 2)],
    ids=["vectors", "codes", "rotated codes"],
)
def test_half_vectors_are_borrowed_and_searched_as_their_values(isa, rows, dim, decay):
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((rows, dim)) * np.arange(1, dim + 1) ** -float(decay)
    halves = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    index = ops.ItemIndex.from_unit_vectors(halves)
    assert np.shares_memory(index.unit_vectors, halves)
    assert index.unit_vectors.dtype == np.float16
    same = ops.ItemIndex.from_unit_vectors(halves.astype(np.float32))
    queries = rng.standard_normal((9, dim)).astype(np.float32)
    exclude = [rng.integers(0, rows, 40) for _ in queries]
    for k, share in [(10, None), (10, 0.5), (10, 0.01), (rows // 2, None)]:
        allow = None if share is None else rng.random(rows) < share
        for excluded in (None, exclude):
            found = ops.cosine_topk(index, queries, k, exclude=excluded, allow=allow, isa=isa)
            expected = ops.cosine_topk(same, queries, k, exclude=excluded, allow=allow)
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])


def test_half_vectors_are_not_copied_in_any_form():
    halves = np.zeros((9000, 64), np.float16)
    tracemalloc.start()
    index = ops.ItemIndex.from_unit_vectors(halves)
    _, most = tracemalloc.get_traced_memory()  # NumPy's memory counts
    tracemalloc.stop()
    assert index.rows == 9000
    assert most < halves.nbytes / 10


_SEARCH_WHAT_MAY_BE_READ = textwrap.dedent(
    """
    import ctypes
    import mmap
    import sys

    import numpy as np

    from recengine import ops

    rows, dim, dtype = 1 << 14, 64, np.dtype(sys.argv[1])
    rng = np.random.default_rng(5)
    memory = mmap.mmap(-1, rows * dim * dtype.itemsize)
    vectors = np.frombuffer(memory, dtype).reshape(rows, dim)
    items = rng.standard_normal((rows, dim))
    items[:, 0] = np.repeat([1, -20], rows // 2)  # the second half scores less than the first
    vectors[:] = items / np.linalg.norm(items, axis=1, keepdims=True)
    index = ops.ItemIndex.from_unit_vectors(vectors)
    queries = rng.standard_normal((32, dim))
    queries[:, 0] = 5
    searches = [(isa, batch) for isa in ops.supported_isas() for batch in (1, 32)]
    answers = [ops.cosine_topk(index, queries[:batch], 50, isa=isa) for isa, batch in searches]
    half = ctypes.c_void_p(vectors.ctypes.data + vectors.nbytes // 2)
    assert ctypes.CDLL(None).mprotect(half, vectors.nbytes // 2, 0) == 0
    for (isa, batch), answer in zip(searches, answers):
        found = ops.cosine_topk(index, queries[:batch], 50, isa=isa)
        assert (found[0] < rows // 2).all()
        np.testing.assert_array_equal(found, answer)
    print("done")
    """
)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_of_items_that_are_ruled_out_are_not_read(tmp_path, dtype):
    """Half of the vectors lie where reading them would end the process."""
    command = [sys.executable, "-c", _SEARCH_WHAT_MAY_BE_READ, dtype]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "done\n", done.stderr


def test_half_vectors_that_are_not_finite_are_refused():
    halves = np.zeros((9000, 64), np.float16)
    halves[8999, 3] = np.inf
    with pytest.raises(InputError, match="unit_vectors: expected finite values"):
        ops.ItemIndex.from_unit_vectors(halves)
