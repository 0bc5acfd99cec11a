"""The codes of a large catalog are packed by compile, and mapped by whoever loads the version."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from bench.serving import synthetic
from recengine.bundle import (
    hash_file,
    read_manifest,
    verify,
    write_bundle,
    write_manifest,
    write_tensors,
)
from recengine.client.wire import WireUsers
from recengine.compile import compile_bundle
from recengine.compile.version_directory import CODES
from recengine.engine import Engine
from recengine.errors import BundleError

ITEMS = 9_000  # of 64 dimensions: more than 2^19 values
USERS = WireUsers(np.array([[7, 3, 5, 8_999]]), np.array([[1, 3, 0]], np.int32), None)


@pytest.fixture(scope="module")
def large_bundle(tmp_path_factory):
    directory = tmp_path_factory.mktemp("large") / "bundle"
    size = synthetic.Size(items=ITEMS, users=50, candidates=20, hidden=(8, 4))
    synthetic.write(directory, size)
    return directory


@pytest.fixture(scope="module")
def compiled(large_bundle, tmp_path_factory):
    with pytest.warns(UserWarning, match="no reference answers"):
        return compile_bundle(large_bundle, tmp_path_factory.mktemp("large") / "repository")


@pytest.fixture
def version(compiled, tmp_path):
    """A copy of what is served as `retrieval`."""
    return shutil.copytree(
        compiled / "retrieval" / "1", tmp_path / "version", copy_function=shutil.copyfile
    )


def write_codes(version, codes):
    """With the checksum that a reader expects."""
    write_tensors(version / CODES, codes)
    manifest = read_manifest(version)
    entry = hash_file(version / CODES)
    files = {**manifest.files, CODES: entry}
    write_manifest(version, manifest.model_copy(update={"files": files}))


def test_the_model_that_searches_has_codes_and_no_other(compiled, large_bundle):
    manifest = verify(compiled / "retrieval" / "1")
    assert manifest.retrieval.index.codes == CODES
    assert CODES in manifest.files
    assert set(load_file(compiled / "retrieval" / "1" / CODES)) == {
        "codes",
        "bounds",
        "axes",
        "scans",
    }
    assert CODES not in read_manifest(compiled / "ranking" / "1").files
    assert read_manifest(large_bundle).retrieval.index.codes is None


def test_of_a_split_repository_the_stage_that_searches_has_them(large_bundle, tmp_path):
    with pytest.warns(UserWarning, match="no reference answers"):
        compile_bundle(large_bundle, tmp_path / "split", target="onnxruntime")
    holders = [path.parent.parent.name for path in (tmp_path / "split").rglob(CODES)]
    assert holders == ["retrieval_topk"]


def test_a_small_catalog_has_none(golden, tmp_path):
    compile_bundle(golden, tmp_path / "repository")
    assert read_manifest(tmp_path / "repository" / "retrieval" / "1").retrieval.index.codes is None


def test_answers_are_those_of_an_engine_that_packs(version):
    mapped = Engine(version).retrieve(USERS, k=20)
    manifest = read_manifest(version)
    retrieval = manifest.retrieval
    index = retrieval.index.model_copy(update={"codes": None})
    files = {name: entry for name, entry in manifest.files.items() if name != CODES}
    update = {"retrieval": retrieval.model_copy(update={"index": index}), "files": files}
    write_manifest(version, manifest.model_copy(update=update))
    packed = Engine(version).retrieve(USERS, k=20)
    np.testing.assert_array_equal(mapped[0], packed[0])
    np.testing.assert_array_equal(mapped[1], packed[1])


def changed_bundle(large_bundle, destination, vectors=None, rename=None):
    """The large bundle with another item in its vectors, or with a file under another name."""
    staging = shutil.copytree(large_bundle, destination / "staging", copy_function=shutil.copyfile)
    tensors = load_file(staging / "index.safetensors")
    if vectors is not None:
        tensors["vectors"] = vectors(tensors["vectors"])
    text = (staging / "manifest.json").read_text()
    if rename is not None:
        text = text.replace("index.safetensors", rename)
        (staging / "manifest.json").write_text(text)
    write_tensors(staging / (rename or "index.safetensors"), tensors)
    write_bundle(staging, read_manifest(staging), destination / "bundle")
    return destination / "bundle"


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (lambda v: np.where(np.arange(len(v))[:, None] == 17, np.nan, v), "expected finite values"),
        (lambda v: v[:-1], r"expected shape \(9000, 64\), found \(8999, 64\)"),
        (lambda v: v.astype(np.int8), "unit_vectors: expected float32, found int8"),
    ],
)
def test_vectors_that_cannot_be_coded_are_named(large_bundle, tmp_path, vectors, message):
    bundle = changed_bundle(large_bundle, tmp_path, vectors)
    with pytest.raises(BundleError, match=f"index.safetensors: tensor vectors: .*{message}"):
        compile_bundle(bundle, tmp_path / "repository")


def test_a_file_of_the_name_that_codes_get_is_refused(large_bundle, tmp_path):
    bundle = changed_bundle(large_bundle, tmp_path, rename=CODES)
    with pytest.raises(BundleError, match=f"{CODES}: expected another name"):
        compile_bundle(bundle, tmp_path / "repository")


def test_a_flipped_bit_is_found(version):
    data = bytearray((version / CODES).read_bytes())
    data[-1000] ^= 1
    (version / CODES).write_bytes(data)
    with pytest.raises(BundleError, match=f"{CODES}: chunk 0: expected SHA-256"):
        Engine(version)


def test_codes_of_another_catalog_are_refused_by_name(version):
    codes = load_file(version / CODES)
    rng = np.random.default_rng(0)
    write_codes(version, {**codes, "codes": rng.permutation(codes["codes"])})
    with pytest.raises(BundleError, match=rf"{CODES}: .* block 0: expected codes of these vectors"):
        Engine(version)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("codes", np.zeros(64, np.uint8), r"codes: expected 577536 values, found 64"),
        ("codes", np.zeros(64, np.int8), "tensor codes: expected dtype U8, found I8"),
        ("bounds", np.zeros((3, 141), np.float32), "tensor bounds: expected shape"),
        ("scans", None, "has no tensor scans"),
    ],
)
def test_tensors_that_are_not_as_the_format_says_are_named(version, name, value, message):
    codes = {**load_file(version / CODES), name: value}
    write_codes(version, {key: array for key, array in codes.items() if array is not None})
    with pytest.raises(BundleError, match=f"{CODES}: .*{message}"):
        Engine(version)
