"""The reader of bundles: what it takes, and what each kind of damage is called."""

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from recengine import bundle
from recengine.errors import BundleError

READERS = (bundle.load_tensor, bundle.map_tensor)


@pytest.fixture
def copy(golden, tmp_path):
    return shutil.copytree(golden, tmp_path / "bundle")


def edit(directory, change):
    path = directory / bundle.MANIFEST
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def test_tensors_of_whole_lines_begin_at_lines(tmp_path):
    tensors = {
        "scales": np.arange(3, dtype=np.float32),
        "codes": np.arange(-96, 96, dtype=np.int8).reshape(3, 64),
        "bits": np.arange(5, dtype=np.uint16),
        "empty": np.empty((0, 4), np.float16),
        "rows": np.eye(16, dtype=np.float32),
        "keys": np.array([7, -(2**63)], np.int64),
        "fused": np.arange(36, dtype=np.uint8).reshape(1, 36),
        "wide": np.ones(1),
    }
    path = tmp_path / "t.safetensors"
    bundle.write_tensors(path, tensors)
    raw = path.read_bytes()
    for name, array in load_file(path).items():
        assert array.dtype == tensors[name].dtype
        np.testing.assert_array_equal(array, tensors[name])
    for name in ("codes", "rows"):
        assert raw.index(tensors[name].tobytes()) % 64 == 0


def test_a_dtype_that_no_reader_knows_is_refused(tmp_path):
    with pytest.raises(BundleError, match="tensor 'z': cannot store dtype complex128"):
        bundle.write_tensors(tmp_path / "t.safetensors", {"z": np.zeros(1, complex)})


def test_the_golden_bundle_is_read_and_verified(golden):
    manifest = bundle.verify(golden)
    assert manifest.format_version == bundle.FORMAT_VERSION == 1
    assert manifest.referenced_files() == set(manifest.files)


def test_a_manifest_that_is_written_is_read_back_as_it_was(copy):
    manifest = bundle.read_manifest(copy)
    bundle.write_manifest(copy, manifest)
    assert bundle.read_manifest(copy) == manifest


@pytest.mark.parametrize("version", [0, 2, "1", 1.5, None])
def test_another_format_version_is_refused_by_name(copy, version):
    edit(copy, lambda raw: raw.update(format_version=version))
    with pytest.raises(BundleError, match=f"format_version is {version!r}, this recengine reads 1"):
        bundle.read_manifest(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "\0", "[" * 100_000])
def test_what_is_not_a_manifest_is_refused(copy, text):
    (copy / bundle.MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        bundle.read_manifest(copy)


def test_a_directory_without_manifest_is_not_a_bundle(tmp_path):
    with pytest.raises(BundleError, match=r"no such file; is this a bundle\?"):
        bundle.read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.pop("features"), "features: Field required"),
        (lambda raw: raw.update(extra=1), "extra: Extra inputs are not permitted"),
        (lambda raw: raw["features"][0].update(max_length=0), r"features\.0\.max_length"),
        (lambda raw: raw["features"][0].update(vocabulary="none"), "names vocabulary 'none'"),
        (lambda raw: raw["retrieval"]["bags"][0].update(table="none"), "names table 'none'"),
        (lambda raw: raw["ranking"].update(graph="none"), "names graph 'none'"),
        (lambda raw: raw["files"].popitem(), "names file"),
        (lambda raw: raw["files"].update({"../x": raw["files"]["tower.onnx"]}), "not a relative"),
        (lambda raw: raw["vocabularies"]["items"].pop("keys"), "hashed vocabulary has keys"),
        (lambda raw: raw.update(stage="dense"), "stage: Input should be 'lookup', 'topk'"),
        (lambda raw: raw.update(stage="lookup"), "lookup and ensemble with one of them"),
        (lambda raw: (raw.update(stage="topk"), raw.pop("retrieval")), "topk with retrieval alone"),
        (lambda raw: (raw.update(stage="order"), raw.pop("ranking")), "order with ranking alone"),
    ],
)
def test_a_manifest_that_does_not_add_up_is_refused_naming_the_field(copy, change, message):
    edit(copy, change)
    with pytest.raises(BundleError, match=message):
        bundle.read_manifest(copy)


def test_every_damaged_file_is_named(copy):
    for name in bundle.read_manifest(copy).files:
        path = copy / name
        intact = path.read_bytes()
        path.write_bytes(intact[:-1])
        with pytest.raises(BundleError, match=f"{name}: expected {len(intact)} bytes, found"):
            bundle.verify(copy)
        path.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
        with pytest.raises(BundleError, match=f"{name}: chunk 0: expected SHA-256"):
            bundle.verify(copy)
        path.unlink()
        with pytest.raises(BundleError, match=f"{name}: missing"):
            bundle.verify(copy)
        path.write_bytes(intact)
    bundle.verify(copy)


def test_a_flipped_bit_is_found_in_its_chunk(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    intact = bundle.hash_file(path, chunk_bytes=300)
    assert (intact.bytes, len(intact.sha256)) == (1000, 4)
    path.write_bytes(bytes(700) + b"\1" + bytes(299))
    found = bundle.hash_file(path, chunk_bytes=300).sha256
    assert [a == b for a, b in zip(found, intact.sha256, strict=True)] == [True, True, False, True]


def test_a_manifest_with_too_few_hashes_is_refused(copy):
    edit(copy, lambda raw: raw["files"]["tower.onnx"].update(sha256=[]))
    with pytest.raises(BundleError, match=r"tower\.onnx: expected SHA-256 of 1 chunks, found 0"):
        bundle.verify(copy)


def test_tensors_are_written_and_read_one_by_one(tmp_path):
    rows = np.arange(6, dtype=np.float16).reshape(2, 3)
    bundle.write_tensors(tmp_path / "t.safetensors", {"rows": rows, "turned": rows.T})
    for name, expected in (("rows", rows), ("turned", rows.T)):
        for read in READERS:
            found = read(tmp_path, bundle.Tensor(file="t.safetensors", tensor=name))
            assert found.dtype == np.float16
            np.testing.assert_array_equal(found, expected)


def with_header(text, data=bytes(64), length=None):
    return (len(text) if length is None else length).to_bytes(8, "little") + text.encode() + data


def described(**entry):
    whole = {"dtype": "F32", "shape": [16], "data_offsets": [0, 64], **entry}
    return with_header(json.dumps({"rows": whole}))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"\xff" * 100,
        with_header("{}", length=2**40),
        with_header("[" * 100_000),
        described(dtype="F33"),
        described(shape=[2, 2]),
        described(shape=[-4, -4]),
        described(data_offsets=[]),
        described(data_offsets=[-64, 0]),
        described(data_offsets=[0, 128], shape=[32]),
    ],
)
def test_a_tensor_that_cannot_be_read_is_named(tmp_path, content, read):
    if content is not None:
        (tmp_path / "t.safetensors").write_bytes(content)
    with pytest.raises(BundleError, match=r"t\.safetensors: tensor 'rows'"):
        read(tmp_path, bundle.Tensor(file="t.safetensors", tensor="rows"))


@pytest.mark.parametrize("read", READERS)
def test_a_tensor_that_is_not_there_is_named(tmp_path, read):
    bundle.write_tensors(tmp_path / "t.safetensors", {"rows": np.zeros(1)})
    with pytest.raises(BundleError, match="tensor 'scales'"):
        read(tmp_path, bundle.Tensor(file="t.safetensors", tensor="scales"))


def test_a_bundle_replaces_the_one_that_stands(copy, golden, tmp_path):
    staging = shutil.copytree(golden, tmp_path / "staging")
    manifest = bundle.read_manifest(staging).model_copy(update={"name": "other"})
    bundle.write_bundle(staging, manifest, copy)
    assert bundle.verify(copy).name == "other"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_files_of_a_bundle_are_read_only_and_those_that_are_linked_stay_as_they_are(
    copy, golden, tmp_path
):
    """Whoever overwrites one kills the server that maps it."""
    staging = shutil.copytree(golden, tmp_path / "staging", copy_function=shutil.copyfile)
    manifest = bundle.read_manifest(staging)
    linked, *written = sorted(manifest.files)
    os.link(staging / linked, tmp_path / "other")
    bundle.write_bundle(staging, manifest, copy)
    assert {(copy / name).stat().st_mode & 0o222 for name in written} == {0}
    assert (copy / linked).stat().st_mode & 0o200


def test_versions_are_numbers_in_numeric_order(tmp_path):
    for name in ("2", "10", "1", "x", ".staging-1", "3.5", "²", "04", "0"):
        (tmp_path / name).mkdir()
    (tmp_path / "99").touch()
    assert bundle.versions(tmp_path) == [1, 2, 10]
    assert bundle.latest_version(tmp_path) == tmp_path / "10"


def test_a_model_without_versions_is_named(tmp_path):
    assert bundle.versions(tmp_path / "none") == []
    with pytest.raises(BundleError, match=r"no version directory; was it compiled\?"):
        bundle.latest_version(tmp_path)
