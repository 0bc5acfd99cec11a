"""What the loader refuses: damage of any byte, other versions, and manifests that lie."""

import contextlib
import json
import os
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from recengine.bundle import hash_file
from recengine.engine import Engine
from recengine.errors import BundleError, CompileError

FILES = ("tensors.safetensors", "reference.safetensors", "tower.onnx", "ranker.onnx")
TENSORS = "tensors.safetensors"


def assert_refused(copy, message, error=BundleError):
    with pytest.raises(error, match=message):
        Engine(copy.directory)


@pytest.mark.parametrize("file", FILES)
def test_missing_file_is_named(copy, file):
    (copy.directory / file).unlink()
    assert_refused(copy, f"{file}: No such file")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kept", [0, 1, 8, 0.5, -1])
def test_truncated_file_is_named(copy, file, kept):
    path = copy.directory / file
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    assert_refused(copy, rf"{file}: expected {len(data)} bytes, found")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("place", [0.0, 0.3, 0.7, 0.999])
def test_one_flipped_bit_is_found(copy, file, place):
    path = copy.directory / file
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1 << 3
    path.write_bytes(data)
    assert_refused(copy, rf"{file}: chunk 0: expected SHA-256 [0-9a-f]{{64}}, found [0-9a-f]{{64}}")


def test_every_chunk_of_a_file_is_hashed(copy):
    path = copy.directory / TENSORS
    manifest = copy.manifest()
    manifest["files"][TENSORS] = hash_file(path, chunk_bytes=1000).model_dump()
    copy.write_manifest(manifest)
    Engine(copy.directory)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert_refused(copy, f"{TENSORS}: chunk {len(data) // 1000}: expected SHA-256")


def flip_bit(path, place):
    """As a new file in the old one's place: who has that mapped keeps it as it was."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    changed = path.with_suffix(".changed")
    changed.write_bytes(data)
    changed.replace(path)


def test_a_change_is_found_while_an_engine_holds_the_file_as_it_was(copy, golden_users):
    engine = Engine(copy.directory)
    before = engine.retrieve(golden_users)
    flip_bit(copy.directory / TENSORS, -1)
    assert_refused(copy, f"{TENSORS}: chunk 0: expected SHA-256")
    np.testing.assert_array_equal(engine.retrieve(golden_users)[0], before[0])


def test_engines_that_load_the_same_files_at_once_all_check_them(copy, tmp_path):
    directories = [tmp_path / f"version_{i}" for i in range(3)]
    for directory in directories:
        shutil.copytree(copy.directory, directory, copy_function=os.link)
    damaged = directories[-1]
    flip_bit(damaged / TENSORS, -1)
    with ThreadPoolExecutor(len(directories)) as pool:
        loads = [pool.submit(Engine, directory) for directory in directories]
    for load in loads[:-1]:
        load.result()
    with pytest.raises(BundleError, match=f"{damaged.name}/{TENSORS}: chunk 0: expected SHA-256"):
        loads[-1].result()


def test_missing_directory_and_manifest_are_named(copy):
    (copy.directory / "manifest.json").unlink()
    assert_refused(copy, "manifest.json: No such file")
    copy.directory = copy.directory / "nowhere"
    assert_refused(copy, "nowhere: No such file")


def test_named_pipe_in_place_of_a_file_is_refused(copy):
    (copy.directory / TENSORS).unlink()
    os.mkfifo(copy.directory / TENSORS)
    assert_refused(copy, f"{TENSORS}: not a regular file")


def test_directory_in_place_of_a_file_is_refused(copy):
    (copy.directory / TENSORS).unlink()
    (copy.directory / TENSORS).mkdir()
    assert_refused(copy, f"{TENSORS}: not a regular file")


def test_link_that_leaves_the_directory_is_refused(copy):
    moved = copy.directory.parent / "elsewhere"
    (copy.directory / TENSORS).rename(moved)
    (copy.directory / TENSORS).symlink_to(moved)
    assert_refused(copy, f"{TENSORS}: leads outside the directory")


def test_link_inside_the_directory_is_followed(copy):
    (copy.directory / TENSORS).rename(copy.directory / "data")
    (copy.directory / TENSORS).symlink_to("data")
    Engine(copy.directory)


BAD_TEXT = {
    "empty": (b"", "not JSON"),
    "not json": (b"{", "not JSON"),
    "not utf-8": (b'{"name": "\xff"}', "not JSON"),
    "trailing": (b"{} {}", "not JSON"),
    "nan": (b'{"format_version": NaN}', "not JSON"),
    "array": (b"[]", "the document: expected an object"),
    "null": (b"null", "the document: expected an object"),
    "no version": (b"{}", "format_version: missing"),
    "deep": (b'{"a":' * 40 + b"1" + b"}" * 40, "nests deeper than 32 levels"),
    "very deep": (b"[" * 1_000_000, "nests deeper than 32 levels"),
    "twice": (b'{"format_version": 1, "format_version": 1}', 'key "format_version" stands twice'),
    "newer and else unknown": (b'{"format_version": 2, "x": 1}', "format_version is 2, this .* 1"),
    "version 0": (b'{"format_version": 0}', "format_version is 0"),
    "version text": (b'{"format_version": "1"}', "format_version: expected an int64"),
    "version true": (b'{"format_version": true}', "format_version: expected an int64, found true"),
    "version 1.0": (b'{"format_version": 1.0}', "format_version: expected an int64, found 1.0"),
    "version huge": (b'{"format_version": 18446744073709551615}', "expected an int64"),
}


@pytest.mark.parametrize("case", BAD_TEXT)
def test_manifest_that_is_no_manifest_is_refused(copy, case):
    raw, message = BAD_TEXT[case]
    (copy.directory / "manifest.json").write_bytes(raw)
    assert_refused(copy, f"manifest.json: .*{message}")


DELETED = object()
HUGE = 2**63
# A path in the manifest, what stands there instead, what the error says.
BAD_FIELDS = [
    ("name", 7, "name: expected a string, found 7"),
    ("name", DELETED, "name: missing"),
    ("surplus", 1, "surplus: unknown key"),
    ("target", "tpu", 'target: expected "cpu" or .* "gpu", found "tpu"'),
    ("stage", "dense", 'stage: expected "lookup" or "topk" or "order", found "dense"'),
    ("features", {}, "features: expected an array, found an object"),
    ("features", DELETED, "features: missing"),
    ("features.0.name", None, r"features\[0\].name: expected a string, found null"),
    ("features.1.name", "user_id", 'features: "user_id" stands twice'),
    ("features.0.surplus", 1, r"features\[0\].surplus: unknown key"),
    ("features.2.max_length", 0, r"features\[2\].max_length: expected an integer >= 1, found 0"),
    ("features.2.max_length", -3, r"features\[2\].max_length: expected an integer >= 1, found -3"),
    ("features.2.max_length", 2**31, "expected at most 2147483647, found 2147483648"),
    ("features.2.max_length", HUGE, "expected an integer >= 1, found 9223372036854775808"),
    ("features.2.hashed", 1, r"features\[2\].hashed: expected true or false, found 1"),
    ("features.0.vocabulary", "x", 'feature "user_id" names vocabulary "x"'),
    ("dense_features", [1], r"dense_features\[0\]: expected a string"),
    ("item_vocabulary", "x", 'item_vocabulary names vocabulary "x"'),
    ("item_vocabulary", "users", "expected 21 rows, found 51|index: expected 20 rows"),
    ("vocabularies.users.kind", "tree", 'users.kind: expected "range" or "hashed", found "tree"'),
    ("vocabularies.users.kind", "hashed", "users: a hashed vocabulary has keys and rows"),
    ("vocabularies.users.count", -1, "users.count: expected an integer >= 0, found -1"),
    ("vocabularies.users.count", 19, "table user of feature user_id: expected 20 rows, found 21"),
    ("vocabularies.users.first", 2**63 - 3, "count: expected ids within int64"),
    ("vocabularies.users.first", -10, 'holds -1, which means "no item"'),
    ("vocabularies.items.rows", DELETED, "items: a hashed vocabulary has keys and rows"),
    ("vocabularies.items.count", 49, r"vocabulary items: slot \d+: expected row -1 or 1 to 49"),
    ("vocabularies.items.count", 51, "vocabulary items: expected 51 keys in the slots, found 50"),
    ("vocabularies.items.keys.tensor", "x", f"{TENSORS}: has no tensor x"),
    ("vocabularies.items.keys.tensor", "items.rows", "items.rows: expected dtype I64, found I32"),
    ("vocabularies.items.rows.tensor", "countries.rows", r"expected shape \[67\], found \[8\]"),
    ("tables", [], "tables: expected an object"),
    ("tables.user", DELETED, 'retrieval names table "user"'),
    ("tables.user.rows", 22, r"tensor user: expected shape \[22, 8\], found \[21, 8\]"),
    ("tables.user.rows", HUGE - 1, r"tensor user: expected shape \[9223372036854775807, 8\]"),
    ("tables.user.dim", 0, "tables.user.dim: expected an integer >= 1, found 0"),
    ("tables.user.dim", 2**40, "tables.user.dim: expected at most 2147483647"),
    ("tables.user.row_type", "fp64", 'row_type: expected "fp32" or .* "int4", found "fp64"'),
    ("tables.user.row_type", "fp16", "tensor user: expected dtype F16, found F32"),
    ("tables.user.row_type", "int8", "tables.user: int8 rows have scales, others have none"),
    ("tables.recent.scales", DELETED, "tables.recent: int8 rows have scales"),
    ("tables.user.data.file", "tower.onnx", "tower.onnx: header length: expected at most"),
    ("tables.user.data.file", "x", 'the manifest names file "x"'),
    ("graphs.tower", DELETED, 'retrieval names graph "tower"'),
    ("graphs.tower.format", "plan", 'format: expected "onnx" or "openvino", found "plan"'),
    ("graphs.tower.precision", "int8", 'precision: expected "fp32" or "bf16", found "int8"'),
    ("graphs.tower.inputs", [], 'graph tower: the manifest has no tensor "sparse"'),
    ("graphs.tower.inputs.0.dims", ["batch", 25], r'"sparse": expected dims \[\?, 24\], found'),
    ("graphs.tower.inputs.0.dims", ["batch", -1], r"dims\[1\]: expected an integer >= 0, found -1"),
    ("graphs.tower.inputs.0.dims", [1, 24], r"expected dims \[\?, 24\], found \[1, 24\]"),
    ("graphs.tower.outputs.0.name", "vector", 'graph tower: the manifest has no tensor "user"'),
    ("graphs.tower.file", "reference.safetensors", "graph tower: OpenVINO"),
    ("retrieval", DELETED, "tables|ranking"),
    ("retrieval", [], "retrieval: expected an object, found an array"),
    ("retrieval.bags", [], "retrieval.bags: expected at least one bag"),
    ("retrieval.bags.0.pooling", "max", 'pooling: expected "sum" or "mean", found "max"'),
    ("retrieval.bags.0.feature", "x", 'retrieval names feature "x"'),
    ("retrieval.bags.0.table", "country", "table country of feature user_id: expected 21 rows"),
    ("retrieval.bags.0.max_length", 0, r"bags\[0\].max_length: expected an integer >= 1"),
    ("retrieval.index.rows", 49, r"tensor index.vectors: expected shape \[49, 8\]"),
    ("retrieval.index.dim", 9, r'"user": expected dims \[\?, 9\]|expected shape \[50, 9\]'),
    ("retrieval.index.keys.tensor", "fallback.rows", r"expected shape \[50\], found \[30\]"),
    ("retrieval.index.keys.tensor", "items.keys", r"items.keys: expected shape \[50\]"),
    ("retrieval.fallback.rows.tensor", "index.keys", "fallback|shape"),
    ("retrieval.num_candidates", 0, "retrieval.num_candidates: expected an integer >= 1"),
    ("retrieval.index.codes", 3, r"retrieval.index.codes: expected a string, found 3"),
    ("retrieval.index.codes", "c.safetensors", 'names file "c.safetensors"'),
    ("retrieval.num_candidates", 65, "num_candidates: expected at most max_candidates, found 65"),
    ("ranking.k", -1, "ranking.k: expected an integer >= 1, found -1"),
    ("ranking.item_table", "x", 'ranking names table "x"'),
    ("ranking.item_table", "user", "item table user: expected 51 rows|items"),
    ("ranking.graph", "tower", 'graph tower: .*"sparse"'),
    ("provenance", DELETED, "provenance: missing"),
    ("files", DELETED, "files: missing"),
    ("files", {}, 'names file "tensors.safetensors"'),
    (f"files:{TENSORS}:bytes", -1, "bytes: expected an integer >= 0, found -1"),
    (f"files:{TENSORS}:bytes", 10**15, "sha256: expected 14901162 chunks, found 1"),
    (f"files:{TENSORS}:chunk_bytes", 0, "chunk_bytes: expected an integer >= 1, found 0"),
    (f"files:{TENSORS}:sha256", [], "sha256: expected 1 chunks, found 0"),
    (f"files:{TENSORS}:sha256", ["A" * 64], r"sha256\[0\]: expected 64 lower-case hexadecimal"),
    ("files:/etc/passwd", {"bytes": 1, "sha256": ["0" * 64]}, "expected a relative path inside"),
    ("files:../x", {"bytes": 1, "sha256": ["0" * 64]}, "expected a relative path inside"),
    ("files:a/../../x", {"bytes": 1, "sha256": ["0" * 64]}, "expected a relative path inside"),
    ("files:", {"bytes": 1, "sha256": ["0" * 64]}, "expected a relative path inside"),
    ("files:a\0b", {"bytes": 1, "sha256": ["0" * 64]}, r'string "a\\u0000b" holds a zero byte'),
    ("files:extra", {"bytes": 1, "sha256": ["0" * 64]}, "extra: No such file"),
]


def replace(document, path, value):
    """Sets or deletes what stands at a path; ":" separates the parts where names hold dots."""
    *parents, last = path.split(":" if ":" in path else ".")
    for part in parents:
        document = document[int(part)] if isinstance(document, list) else document[part]
    if value is DELETED:
        del document[last]
    else:
        document[int(last) if isinstance(document, list) else last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"), BAD_FIELDS, ids=[f"{i}-{c[0]}" for i, c in enumerate(BAD_FIELDS)]
)
def test_field_that_is_not_as_the_format_says_is_named(copy, path, value, message):
    manifest = copy.manifest()
    replace(manifest, path, value)
    if path == "retrieval" and value is DELETED:
        del manifest["ranking"]
        message = "expected a retrieval or a ranking stage"
    copy.write_manifest(manifest)
    assert_refused(copy, message, (BundleError, CompileError))


def header(**tensors):
    raw = json.dumps(tensors).encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(dtype="F32", shape=(2,), data_offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": data_offsets, **more}


BAD_SAFETENSORS = {
    "empty": (b"", "expected a safetensors header, found 0 bytes"),
    "short": (b"\0" * 7, "expected a safetensors header, found 7 bytes"),
    "header beyond the end": (struct.pack("<Q", 100) + b"{}", "expected at most 2, found 100"),
    "header of 2^64 - 1": (b"\xff" * 8 + b"{}", "at most 2, found 18446744073709551615"),
    "no header": (struct.pack("<Q", 0), "not JSON"),
    "not json": (struct.pack("<Q", 4) + b"{{{{", "not JSON"),
    "array": (struct.pack("<Q", 2) + b"[]", "expected an object"),
    "deep": (struct.pack("<Q", 100) + b"[" * 100, "nests deeper"),
    "tensor twice": (struct.pack("<Q", 15) + b'{"a":{},"a":{}}', 'key "a" stands twice'),
    "no dtype": (header(a={"shape": [2], "data_offsets": [0, 8]}), "a.dtype: missing"),
    "unknown dtype": (header(a=entry("F33")), 'a.dtype: expected a dtype .* found "F33"'),
    "unknown key": (header(a=entry(x=1)), "a.x: unknown key"),
    "negative dim": (header(a=entry(shape=[-2])), r"a.shape\[0\]: expected an integer >= 0"),
    "float dim": (header(a=entry(shape=[2.0])), r"a.shape\[0\]: expected an integer"),
    "overflow": (header(a=entry(shape=[2**61, 8])), "a.shape: the number of bytes overflows"),
    "overflow to 8": (header(a=entry(shape=[2**62 + 2])), "a.shape: the number of bytes overflows"),
    "one offset": (header(a=entry(data_offsets=[0])), r"a.data_offsets: expected \[begin, end\]"),
    "backwards": (header(a=entry(data_offsets=[8, 0])), r"data_offsets\[1\]: expected .* >= 8"),
    "negative offset": (header(a=entry(data_offsets=[-8, 0])), r"data_offsets\[0\]: expected"),
    "size": (
        header(a=entry(data_offsets=[0, 4])) + b"\0" * 4,
        r"expected 8 bytes .*\[2\], found 4",
    ),
    "no data": (header(a=entry()), "expected 8 bytes of data, found 0"),
    "surplus data": (header(a=entry()) + b"\0" * 9, "expected 8 bytes of data, found 9"),
    "gap": (
        header(a=entry(data_offsets=[4, 12])) + b"\0" * 12,
        "tensor a: expected data_offsets from 0, found 4",
    ),
    "overlap": (
        header(a=entry(), b=entry(data_offsets=[4, 12])) + b"\0" * 12,
        "tensor b: expected data_offsets from 8, found 4",
    ),
    "beyond the end": (
        header(a=entry(), b=entry(data_offsets=[8, 16])) + b"\0" * 8,
        "expected 16 bytes of data, found 8",
    ),
    "other tensors": (header(a=entry()) + b"\0" * 8, "has no tensor"),
}


@pytest.mark.parametrize("case", BAD_SAFETENSORS)
def test_safetensors_header_that_lies_is_refused(copy, case):
    raw, message = BAD_SAFETENSORS[case]
    (copy.directory / TENSORS).write_bytes(raw)
    copy.rehash(TENSORS)
    assert_refused(copy, f"{TENSORS}: .*{message}")


def set_value(name, index, value):
    def change(tensors):
        tensors[name][index] = value

    return change


def scale(name, index, factor):
    def change(tensors):
        tensors[name][index] *= factor

    return change


def swap_keys(tensors):
    tensors["index.keys"][[0, 1]] = tensors["index.keys"][[1, 0]]


BAD_VALUES = {
    "fp32 table": (set_value("user", (3, 1), np.nan), "table user: row 3: expected finite values"),
    "fp16 table": (set_value("history", (4, 0), np.inf), "table history: row 4: expected finite"),
    "scales": (set_value("recent.scales", 50, -np.inf), "table recent: scales: row 50: expected"),
    "item table": (set_value("ranking_items", (0, 2), np.nan), "table ranking_items: row 0"),
    "index": (set_value("index.vectors", (7, 0), np.nan), "index: row 7: expected finite"),
    "norm": (scale("index.vectors", 9, 1.01), "index: row 9: expected norm 1 or 0, found 1.01"),
    "slot row": (set_value("items.rows", 5, 51), "slot 5: expected row -1 or 1 to 50, found 51"),
    "slot row -2": (set_value("items.rows", 5, -2), "slot 5: expected row -1 or 1 to 50, found -2"),
    "all slots empty": (set_value("items.rows", slice(None), -1), "expected 50 keys .* found 0"),
    "key -1": (set_value("index.keys", 8, -1), "index: key -1 of row 8"),
    "keys swapped": (swap_keys, r"index: key -?\d+ of row 0: expected row 1 .* found 2"),
    "key twice": (set_value("index.keys", 2, 77), "index: key 77 of row 2: .* found 0"),
    "fallback row": (
        set_value("fallback.rows", 1, 50),
        "position 1: expected an index row below 50",
    ),
    "fallback -1": (set_value("fallback.rows", 1, -1), "position 1: .* found -1"),
    "fallback score": (set_value("fallback.scores", 2, np.inf), "fallback: scores: row 2"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_value_that_would_harm_an_answer_is_refused(copy, case):
    change, message = BAD_VALUES[case]
    path = copy.directory / TENSORS
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    copy.rehash(TENSORS)
    assert_refused(copy, message)


@pytest.mark.parametrize(
    ("row_type", "bits", "message"),
    [
        ("bf16", [0x7F80] + [0] * 7, "table user: row 3: expected finite values"),
        ("int4", [0, 0x7C, 0, 0] + [0] * 4, "table user: scale and bias: row 3: expected finite"),
        ("int4", [0, 0, 0, 0xFC] + [0] * 4, "table user: scale and bias: row 3: expected finite"),
    ],
)
def test_rows_of_bits_that_stand_for_no_number_are_refused(copy, row_type, bits, message):
    copy.store_table("user", row_type)
    path = copy.directory / TENSORS
    tensors = load_file(path)
    tensors["user"][3] = bits
    save_file(tensors, path)
    copy.rehash(TENSORS)
    assert_refused(copy, message)


def store_index(copy, change):
    path = copy.directory / TENSORS
    tensors = load_file(path)
    tensors["index.vectors"] = change(tensors["index.vectors"])
    save_file(tensors, path)
    copy.rehash(TENSORS)


def test_index_row_of_zeros_is_allowed(copy):
    def change(vectors):
        vectors[3] = 0
        return vectors

    store_index(copy, change)
    Engine(copy.directory)


def test_item_vectors_in_half_precision_are_served_as_their_values(copy, golden_users):
    store_index(copy, lambda vectors: vectors.astype(np.float16))
    found = Engine(copy.directory).retrieve(golden_users)
    store_index(copy, lambda vectors: vectors.astype(np.float32))
    expected = Engine(copy.directory).retrieve(golden_users)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_item_vector_in_half_precision_that_is_not_finite_is_refused(copy):
    def change(vectors):
        halves = vectors.astype(np.float16)
        halves[7, 0] = np.nan
        return halves

    store_index(copy, change)
    assert_refused(copy, "index: row 7: expected finite")


def test_tensors_that_are_not_aligned_are_read_all_the_same(copy, engine, golden_users):
    path = copy.directory / TENSORS
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    path.write_bytes(
        struct.pack("<Q", length + 1) + data[8 : 8 + length] + b" " + data[8 + length :]
    )
    copy.rehash(TENSORS)
    found, expected = Engine(copy.directory).recommend(golden_users), engine.recommend(golden_users)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def change_graph(copy, change):
    path = copy.directory / "tower.onnx"
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)
    copy.rehash("tower.onnx")


def rename_output(graph):
    graph.output[0].name = graph.node[-1].output[0] = "vector"


def fix_batch(graph):
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1


def double_input(graph):
    graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    graph.node.insert(0, onnx.helper.make_node("Cast", ["sparse"], ["cast"], to=1))
    graph.node[1].input[0] = "cast"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_output, 'graph tower: the graph has no tensor "user"'),
        (fix_batch, r'tensor "sparse": expected fp32 \[\?, 24\], found f32 \[1, 24\]'),
        (double_input, r'tensor "sparse": expected fp32 \[\?, 24\], found f64'),
        (lambda graph: graph.node.pop(0), "graph tower: OpenVINO"),
    ],
)
def test_graph_that_is_not_as_the_manifest_says_is_refused(copy, change, message):
    change_graph(copy, change)
    assert_refused(copy, message, CompileError)


def test_graph_of_another_shape_is_refused_by_name(copy):
    """The manifest's dims are right, the graph's are not: a ranker in place of the tower."""
    (copy.directory / "tower.onnx").write_bytes((copy.directory / "ranker.onnx").read_bytes())
    copy.rehash("tower.onnx")
    assert_refused(copy, "graph tower: expected 2 inputs, found 4", CompileError)


def test_random_damage_behind_right_hashes_never_crashes(copy, rng):
    """The hashes are made to agree, so that every parser sees the damage."""
    path = copy.directory / TENSORS
    data = path.read_bytes()
    refused = 0
    for _ in range(60):
        damaged = bytearray(data)
        for position in rng.integers(0, 600, 3):
            damaged[position] = rng.integers(0, 256)
        path.write_bytes(damaged)
        copy.rehash(TENSORS)
        try:
            Engine(copy.directory)
        except BundleError:
            refused += 1
    assert refused > 0


def test_random_damage_of_a_graph_never_crashes(copy, rng):
    path = copy.directory / "tower.onnx"
    data = path.read_bytes()
    for _ in range(6):
        damaged = bytearray(data)
        damaged[rng.integers(0, len(data))] = rng.integers(0, 256)
        path.write_bytes(damaged)
        copy.rehash("tower.onnx")
        with contextlib.suppress(BundleError, CompileError):
            Engine(copy.directory)
