import hashlib

import numpy as np
import pytest

from recengine import ops
from recengine.bundle import Tensor, map_tensor, write_tensors
from recengine.errors import InputError


def gaussian(rng, rows, dim):
    return rng.standard_normal((rows, dim), np.float32)


def steep(rng, rows, dim):
    """Long along few directions that are no axes, as trained vectors are: rotated, read in part."""
    turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    return (gaussian(rng, rows, dim) * 0.65 ** np.arange(dim) @ turn).astype(np.float32)


def unit(vectors, dtype=np.float32):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(dtype)


@pytest.fixture(scope="module")
def vectors():
    return unit(gaussian(np.random.default_rng(0), 9_000, 64))


@pytest.fixture(scope="module")
def codes(vectors):
    return ops.ItemIndex.from_unit_vectors(vectors).stored_codes()


def assert_same_searches(index, expected, queries):
    for batch in (1, 9):
        found = ops.certified_topk(index, queries[:batch], 50)
        wanted = ops.certified_topk(expected, queries[:batch], 50)
        for one, other in zip(found[:2], wanted[:2], strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(found[2].bound, wanted[2].bound)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("kind", "rows", "dim"), [(gaussian, 9_001, 62), (steep, 20_000, 48)])
def test_an_index_with_stored_codes_is_the_one_that_stored_them(
    tmp_path, kind, rows, dim, dtype, split
):
    rng = np.random.default_rng(1)
    vectors = unit(kind(rng, rows, dim), dtype)
    packed = ops.ItemIndex.from_unit_vectors(vectors, split_codes=split)
    write_tensors(tmp_path / "codes.safetensors", packed.stored_codes())
    mapped = {
        name: map_tensor(tmp_path, Tensor(file="codes.safetensors", tensor=name))
        for name in packed.stored_codes()
    }
    index = ops.ItemIndex.from_unit_vectors(vectors, mapped)
    assert (packed.partial_scans != []) == (kind is steep)
    assert index.partial_scans == packed.partial_scans
    assert index.split_codes == packed.split_codes == split
    assert_same_searches(index, packed, vectors[:9].astype(np.float32))
    for name, array in index.stored_codes().items():
        np.testing.assert_array_equal(array, mapped[name])


def test_stored_codes_are_a_view_that_is_not_copied_when_they_are_taken(vectors):
    index = ops.ItemIndex.from_unit_vectors(vectors)
    codes = index.stored_codes()
    assert codes["codes"].nbytes <= (64 + 5) * (len(vectors) + 63)
    assert not codes["codes"].flags.writeable
    again = ops.ItemIndex.from_unit_vectors(vectors, codes).stored_codes()
    assert np.shares_memory(again["codes"], codes["codes"])


@pytest.mark.parametrize(
    ("rows", "dim", "rotated"),
    [(17_000, 120, True), (17_000, 124, False), (17_000, 119, False), (18_000, 46, True)],
)
@pytest.mark.parametrize("split", [False, True])
def test_codes_bounds_and_axes_take_at_most_eight_bytes_besides_the_dimensions(
    rows, dim, rotated, split
):
    vectors = steep(np.random.default_rng(1), rows, dim)
    codes = ops.ItemIndex(vectors, split_codes=split).stored_codes()
    assert (codes["axes"].size > 0) == rotated
    assert sum(array.nbytes for array in codes.values()) <= (dim + 8) * (rows + 63)


def test_codes_outlive_the_names_that_they_had(vectors, codes):
    copies = {name: array.copy() for name, array in codes.items()}
    index = ops.ItemIndex.from_unit_vectors(vectors, copies)
    expected = ops.cosine_topk(vectors, vectors[:3], 5)
    del copies
    np.testing.assert_array_equal(ops.cosine_topk(index, vectors[:3], 5)[0], expected[0])


def test_codes_of_the_same_vectors_are_the_same_bytes_for_ever():
    # What a version directory holds is compared with what a server would pack: a change here makes
    # those that stand unloadable, and wants another format version.
    vectors = np.random.default_rng(2).integers(-9, 10, (9_000, 61)).astype(np.float32)
    codes = ops.ItemIndex(vectors).stored_codes()
    assert [codes[name].size for name in ("axes", "scans")] == [0, 0]
    sums = [hashlib.sha256(codes[name].tobytes()).hexdigest()[:16] for name in ("codes", "bounds")]
    assert sums == ["217d735e3cad8000", "ca014c23fe3b1c4d"]


def test_split_codes_hold_the_same_bits_high_ones_first():
    vectors = np.random.default_rng(2).integers(-9, 10, (9_000, 61)).astype(np.float32)
    whole = ops.ItemIndex(vectors, split_codes=False).stored_codes()
    split = ops.ItemIndex(vectors, split_codes=True).stored_codes()
    blocks, steps = 141, 16
    codes = whole["codes"].reshape(blocks, steps, 2, 2, 64)  # of two groups each in two pairs
    high = codes[..., 0, :] & 0xF0 | codes[..., 1, :] >> 4
    pairs = codes.reshape(blocks, steps // 2, 2, 4, 64)  # of two steps
    low = (pairs[:, :, 1] << 4 | pairs[:, :, 0] & 0x0F).swapaxes(1, 2)
    expected = np.concatenate([high.ravel(), low.ravel()])
    np.testing.assert_array_equal(split["codes"], expected)
    np.testing.assert_array_equal(split["bounds"][: 3 * blocks], whole["bounds"])
    errors = split["bounds"][3 * blocks :]
    assert (errors > 8 * whole["bounds"][2 * blocks :]).all()
    assert (errors < 32 * whole["bounds"][2 * blocks :]).all()


def test_split_codes_are_said_once(vectors, codes):
    with pytest.raises(InputError, match=r"split_codes: expected none beside codes"):
        ops.ItemIndex.from_unit_vectors(vectors, codes, split_codes=True)


def test_a_small_catalog_has_no_codes():
    index = ops.ItemIndex(np.eye(8, dtype=np.float32), split_codes=True)
    assert index.stored_codes() is None
    assert not index.split_codes


def test_codes_of_other_vectors_are_refused(vectors, codes):
    with pytest.raises(InputError, match=r"codes: block 0: expected codes of these vectors"):
        ops.ItemIndex.from_unit_vectors(vectors[::-1].copy(), codes)
    changed = vectors.copy()
    changed[-1] = vectors[0]
    # The last of 141 blocks is not among those compared; what holds for files is their checksum.
    ops.ItemIndex.from_unit_vectors(changed, codes)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("codes", lambda a: a[:-1], r"codes: expected 577536 values, found 577535"),
        ("codes", lambda a: np.append(a[64:], a[:64]), "block 0: expected codes of these vectors"),
        ("bounds", lambda a: a[:-1], r"bounds: expected 423 values, found 422"),
        ("bounds", lambda a: np.where(np.arange(len(a)) == 5, np.nan, a), "bounds: block 5: "),
        ("bounds", lambda a: np.where(np.arange(len(a)) == 5, 0, a), "bounds: block 5: "),
        ("bounds", lambda a: np.where(np.arange(len(a)) == 150, -1, a), "bounds: block 9: "),
        ("bounds", lambda a: np.where(np.arange(len(a)) == 290, np.inf, a), "bounds: block 8: "),
        ("bounds", lambda a: a / 2, "block 0: expected codes of these vectors"),
        ("axes", lambda _: np.eye(63, dtype=np.float32).ravel(), "axes: expected 4096 values"),
        ("axes", lambda _: np.full(64 * 64, np.nan, np.float32), "axes: expected finite"),
        ("bounds", lambda a: np.where(np.arange(len(a)) == 5, 1e-30, a), "bounds: block 5: "),
        ("bounds", lambda a: np.where(np.arange(len(a)) == 5, 1e30, a), "bounds: block 5: "),
        ("scans", lambda _: np.float32([8, 0.1]), "scans: expected none without axes"),
        ("scans", lambda _: np.float32([8]), "scans: expected at most 8 values in pairs, found 1"),
        ("scans", lambda _: np.float32([6, 0.1]), "scans: expected a multiple of 4 dimensions"),
        ("scans", lambda _: np.float32([64, 0.1]), "scans: expected a multiple of 4 dimensions"),
        ("scans", lambda _: np.float32([np.nan, 0]), "scans: expected a multiple of 4 dimensions"),
        ("scans", lambda _: np.float32([8, np.nan]), "scans: expected a share from 0 to 1"),
        ("scans", lambda a: a.astype(np.int32)[None], "scans: expected rank 1, found 2"),
        ("bounds", lambda a: a.astype(np.int64), "bounds: expected float32, found int64"),
    ],
)
def test_codes_that_cannot_be_are_refused_by_name(vectors, codes, name, change, message):
    with pytest.raises(InputError, match=message):
        ops.ItemIndex.from_unit_vectors(vectors, {**codes, name: change(codes[name])})


def test_axes_of_more_dimensions_than_are_rotated_are_refused():
    vectors = unit(gaussian(np.random.default_rng(3), 2_000, 520))
    codes = ops.ItemIndex.from_unit_vectors(vectors).stored_codes()
    with pytest.raises(InputError, match="axes: expected none of more than 512 dimensions"):
        ops.ItemIndex.from_unit_vectors(
            vectors, {**codes, "axes": np.eye(520, dtype=np.float32).ravel()}
        )


def test_arrays_that_are_missing_are_named(vectors, codes):
    with pytest.raises(InputError, match=r"codes: expected \['axes', .*\], found \['codes'\]"):
        ops.ItemIndex.from_unit_vectors(vectors, {"codes": codes["codes"]})


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(("make", "dim"), [(gaussian, 61), (gaussian, 64), (steep, 64)])
def test_codes_are_packed_to_the_same_bits_on_every_instruction_set(
    monkeypatch, make, dim, dtype, split
):
    vectors = unit(make(np.random.default_rng(2), 9_001, dim), dtype)
    packed = {}
    for isa in ops.supported_isas():
        monkeypatch.setenv("RECENGINE_ISA", isa)
        index = ops.ItemIndex.from_unit_vectors(vectors, split_codes=split)
        packed[isa] = index.stored_codes()
    expected = packed.pop("portable")
    for codes in packed.values():
        assert codes.keys() == expected.keys()
        for name, values in codes.items():
            np.testing.assert_array_equal(values, expected[name])
