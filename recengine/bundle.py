"""The bundle: manifest.json, safetensors and graphs in one directory. The waist of recengine.

Export writes a bundle, compile reads one and writes version directories of the same format, the
C++ engine loads those. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator
from safetensors import SafetensorError, safe_open

from recengine._files import publish_directory, replace_file, sync
from recengine.errors import BundleError, UnknownFormat

FORMAT_VERSION: Literal[1] = 1
MANIFEST = "manifest.json"
CHUNK_BYTES = 64 * 1024 * 1024

_LINE = 64  # bytes of a cache line
_SAFETENSORS_DTYPES = {
    "<f8": "F64",
    "<f4": "F32",
    "<f2": "F16",
    "<i8": "I64",
    "<i4": "I32",
    "<u2": "U16",
    "|i1": "I8",
    "|u1": "U8",
}

RowType = Literal["fp32", "fp16", "bf16", "int8", "int4"]
Pooling = Literal["sum", "mean"]
Target = Literal["cpu", "onnxruntime", "gpu"]
Stage = Literal["lookup", "topk", "order", "ensemble"]


Record = TypeVar("Record", bound=BaseModel)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileEntry(_Model):
    """One file of the bundle: its size and the SHA-256 of each chunk of `chunk_bytes`."""

    bytes: Annotated[int, Field(ge=0)]
    chunk_bytes: Annotated[int, Field(gt=0)] = CHUNK_BYTES
    sha256: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]


UNHASHED = FileEntry(bytes=0, sha256=[])
"""Stands in for a file until write_bundle() hashes it."""


class Tensor(_Model):
    """A tensor by its safetensors file and name."""

    file: str
    tensor: str


class Vocabulary(_Model):
    """Raw int64 id to table row: row 0 is out-of-vocabulary, the i-th key has row i + 1.

    `range` holds the ids first .. first + count - 1 and needs no file. `hashed` borrows the slots
    that `recengine.ops.build_slots` laid out: keys int64 and rows int32, [capacity] each.
    """

    kind: Literal["range", "hashed"]
    count: Annotated[int, Field(ge=0)]
    first: int = 0
    keys: Tensor | None = None
    rows: Tensor | None = None

    @model_validator(mode="after")
    def _slots_belong_to_hashed(self) -> Vocabulary:
        if (self.kind == "hashed") != (self.keys is not None and self.rows is not None):
            raise ValueError("a hashed vocabulary has keys and rows, a range has neither")
        return self


class Feature(_Model):
    """A sparse user feature on the wire: a list of raw ids, of which the last `max_length` count.

    `hashed` says that the raw keys are strings, hashed by `recengine.keys.hash_key`.
    """

    name: str
    vocabulary: str
    max_length: Annotated[int, Field(gt=0)]
    hashed: bool = False


class Table(_Model):
    """Embedding rows [rows, dim], row 0 out-of-vocabulary.

    As tensors [rows, dim]: float32, float16, uint16 (the bits of bf16), int8 with float32 scales
    [rows]; int4 as uint8 [rows, 4 + ceil(dim / 2)], see `ops.fuse_rows`.
    """

    rows: Annotated[int, Field(gt=0)]
    dim: Annotated[int, Field(gt=0)]
    row_type: RowType
    data: Tensor
    scales: Tensor | None = None


class Bag(_Model):
    """One pooled lookup: the last `max_length` ids of a feature, in a table, sum or mean."""

    feature: str
    table: str
    pooling: Pooling
    max_length: Annotated[int, Field(gt=0)]


class GraphTensor(_Model):
    """An input or output of a graph; a dim is a number or the name of a dynamic axis."""

    name: str
    dims: list[int | str]


class Graph(_Model):
    """A dense graph over fp32 tensors: ONNX in a bundle, OpenVINO IR once compiled for a CPU."""

    file: str
    weights: str | None = None
    format: Literal["onnx", "openvino"]
    precision: Literal["fp32", "bf16"] = "fp32"
    inputs: list[GraphTensor]
    outputs: list[GraphTensor]


class Index(_Model):
    """Unit item vectors [rows, dim] and raw keys [rows]; row r is vocabulary row r + 1.

    Vectors are float32 or float16; keys are int64. Once compiled, a large catalog has a file of
    `codes`, with the tensors of `ops.ItemIndex.stored_codes`, so that a server need not pack them.
    """

    rows: Annotated[int, Field(gt=0)]
    dim: Annotated[int, Field(gt=0)]
    vectors: Tensor
    keys: Tensor
    codes: str | None = None


class Fallback(_Model):
    """Index rows int64 and scores fp32 [n], best first: the answer when nothing is known."""

    rows: Tensor
    scores: Tensor


class Retrieval(_Model):
    """Graph: sparse [batch, bags' dims concatenated] (, dense [batch, n]) -> user [batch, dim]."""

    family: str
    bags: list[Bag]
    graph: str
    index: Index
    fallback: Fallback
    num_candidates: Annotated[int, Field(gt=0)]
    max_candidates: Annotated[int, Field(gt=0)]


class Ranking(_Model):
    """Graph: sparse (, dense), items [batch, n, dim], candidate_scores [batch, n] -> scores.

    `item_table` has one row per item: everything the ranker knows of it, pooled at export.
    """

    family: str
    bags: list[Bag]
    item_table: str
    graph: str
    k: Annotated[int, Field(gt=0)]
    usual_candidates: Annotated[int, Field(gt=0)] | None = None
    """How many most requests bring, where the retrieval stage is not there to say it."""


class Reference(_Model):
    """What eager PyTorch answered for held-out users; the fidelity gate compares with it.

    Tensors of `file`: ids int64 [users, width], lengths int32 [users, features + 1],
    dense fp32 [users, n] (if any), target int64 [users] (the held-out item's key),
    candidates int64 [users, num_candidates] and candidate_scores fp32, items int64 [users, k] and
    scores fp32: the eager retrieval and the eager end-to-end answer.
    """

    file: str
    users: Annotated[int, Field(gt=0)]


class FidelityBounds(_Model):
    """How far an engine may be from eager PyTorch before compile refuses it."""

    score_error: float = 1e-3
    identical_top_k: float = 0.98
    metric_delta: float = 0.002


class FidelityRow(_Model):
    """One comparison with the reference over its held-out users.

    path: who answered: the compiled models in process, a server, or on the CPU the ONNX graphs in
    the precision of the plans. score_error: largest |score - eager score| over items in both
    answers. identical_top_k: share of users whose ordered item list is the eager one, swaps of
    equal scores within the bound aside.
    """

    stage: Literal["retrieval", "recommend"]
    path: Literal["engine", "served", "onnx"]
    users: int
    k: int
    score_error: float
    identical_top_k: float
    recall: float
    recall_eager: float
    ndcg: float
    ndcg_eager: float


class Provenance(_Model):
    """Where a bundle comes from.

    `dataset` says under "split" on which split `quality` was measured and users were held out.
    `dense_means` has the mean that training gave users whose dense feature is unknown, by name;
    clients do the same. It stands here because engines of before look at nothing of it.
    """

    created: str
    recengine: str
    checkpoint_sha256: str | None = None
    dataset: dict[str, str] = {}
    versions: dict[str, str] = {}
    quality: dict[str, dict[str, float]] = {}
    dense_means: dict[str, FiniteFloat] | None = None


class Manifest(_Model):
    """Everything about a bundle or a version directory.

    `stage` says which stage of retrieval or of ranking the version directory of a split repository
    serves; None for all of them, graphs included. Such a directory has the tables (lookup) or the
    index and fallback list (topk) that its stage reads, and no graph: `graph` then names the model
    that runs it. An ensemble's manifest is a record for people and tools; no engine loads it.
    """

    format_version: Literal[1] = FORMAT_VERSION
    name: str
    target: Target | None = None
    stage: Stage | None = None
    features: list[Feature]
    dense_features: list[str] = []
    item_vocabulary: str
    vocabularies: dict[str, Vocabulary]
    tables: dict[str, Table]
    graphs: dict[str, Graph]
    retrieval: Retrieval | None = None
    ranking: Ranking | None = None
    reference: Reference | None = None
    fidelity: list[FidelityRow] = []
    provenance: Provenance
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _names_resolve(self) -> Manifest:
        features = {feature.name for feature in self.features}
        for feature in self.features:
            _known("vocabulary", feature.vocabulary, self.vocabularies, f"feature {feature.name!r}")
        _known("vocabulary", self.item_vocabulary, self.vocabularies, "item_vocabulary")
        for model in (self.retrieval, self.ranking):
            if model is None:
                continue
            if self.stage is None:
                _known("graph", model.graph, self.graphs, model.family)
            for bag in model.bags:
                _known("feature", bag.feature, features, model.family)
                if self._holds("lookup"):
                    _known("table", bag.table, self.tables, model.family)
        if self.ranking is not None and self._holds("lookup"):
            _known("table", self.ranking.item_table, self.tables, self.ranking.family)
        for path in self.referenced_files():
            _known("file", path, self.files, "manifest")
        for path in self.files:
            parts = PurePosixPath(path).parts
            if not parts or path.startswith("/") or ".." in parts or "\\" in path:
                raise ValueError(f"file {path!r} is not a relative path inside the bundle")
        return self

    @model_validator(mode="after")
    def _a_stage_is_of_one_model(self) -> Manifest:
        parts = (self.retrieval is not None, self.ranking is not None)
        allowed = {"topk": [(True, False)], "order": [(False, True)]}
        either = [(True, False), (False, True)]
        if self.stage is not None and parts not in allowed.get(self.stage, either):
            raise ValueError(
                "stage: expected topk with retrieval alone, order with ranking alone, lookup and "
                "ensemble with one of them"
            )
        return self

    def _holds(self, stage: Stage) -> bool:
        return self.stage in (None, stage)

    def referenced_files(self) -> set[str]:
        """Every file that some part of the manifest names."""
        tensors: list[Tensor | None] = []
        files: set[str] = set()
        for vocabulary in self.vocabularies.values():
            tensors += [vocabulary.keys, vocabulary.rows]
        for table in self.tables.values():
            tensors += [table.data, table.scales]
        if self.retrieval is not None and self._holds("topk"):
            index, fallback = self.retrieval.index, self.retrieval.fallback
            tensors += [index.vectors, index.keys, fallback.rows, fallback.scores]
            if index.codes is not None:
                files.add(index.codes)
        for graph in self.graphs.values():
            files.add(graph.file)
            if graph.weights is not None:
                files.add(graph.weights)
        if self.reference is not None:
            files.add(self.reference.file)
        return files | {tensor.file for tensor in tensors if tensor is not None}


def _known(kind: str, name: str, names: Iterable[str], owner: str) -> None:
    if name not in names:
        raise ValueError(f"{owner} names {kind} {name!r}, which the manifest does not have")


def hash_file(path: Path, chunk_bytes: int = CHUNK_BYTES) -> FileEntry:
    """Size and chunk-wise SHA-256 of a file; chunks are hashed in parallel."""
    size = path.stat().st_size

    def digest(offset: int) -> str:
        with path.open("rb") as file:
            file.seek(offset)
            return hashlib.sha256(file.read(chunk_bytes)).hexdigest()

    with ThreadPoolExecutor() as pool:
        chunks = list(pool.map(digest, range(0, max(size, 1), chunk_bytes)))
    return FileEntry(bytes=size, chunk_bytes=chunk_bytes, sha256=chunks)


def read_manifest(directory: Path | str) -> Manifest:
    """Reads and validates `directory`/manifest.json; files are not opened.

    Raises:
        UnknownFormat: the manifest has another format version.
        BundleError: the manifest is missing, is not JSON or is not valid; the message names the
            field.
    """
    path = Path(directory) / MANIFEST
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{path}: no such file; is this a bundle?") from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not JSON: {error}") from None
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise UnknownFormat(
            f"{path}: format_version is {version!r}, this recengine reads {FORMAT_VERSION}"
        )
    try:
        return Manifest.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise BundleError(f"{path}: {where}: {first['msg']}") from None


def verify(directory: Path | str) -> Manifest:
    """read_manifest(), then every file's size and SHA-256.

    Raises:
        BundleError: naming the file that is missing, truncated or changed.
    """
    manifest = read_manifest(directory)
    for name, expected in manifest.files.items():
        path = Path(directory) / name
        if not path.is_file():
            raise BundleError(f"{path}: missing; the manifest lists it")
        size = path.stat().st_size
        if size != expected.bytes:
            raise BundleError(f"{path}: expected {expected.bytes} bytes, found {size}")
        found = hash_file(path, expected.chunk_bytes)
        if len(expected.sha256) != len(found.sha256):
            raise BundleError(
                f"{path}: expected SHA-256 of {len(found.sha256)} chunks, "
                f"found {len(expected.sha256)} in the manifest"
            )
        for chunk, (want, have) in enumerate(zip(expected.sha256, found.sha256, strict=True)):
            if want != have:
                raise BundleError(f"{path}: chunk {chunk}: expected SHA-256 {want}, found {have}")
    return manifest


def load_tensor(directory: Path | str, tensor: Tensor) -> np.ndarray[Any, Any]:
    """One tensor of a bundle as a NumPy array.

    Raises:
        BundleError: the file is not safetensors or has no such tensor.
    """
    path = Path(directory) / tensor.file
    try:
        with safe_open(path, framework="np") as file:
            array: np.ndarray[Any, Any] = file.get_tensor(tensor.tensor)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path}: tensor {tensor.tensor!r}: {error}") from None
    return array


def map_tensor(directory: Path | str, tensor: Tensor) -> np.ndarray[Any, Any]:
    """One tensor of a bundle, mapped read-only: it may be larger than the memory.

    Raises:
        BundleError: the file is not safetensors, has no such tensor, or one that is not supported.
    """
    path = Path(directory) / tensor.file
    dtypes = {name: np.dtype(dtype) for dtype, name in _SAFETENSORS_DTYPES.items()}
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            start, size = 8 + length, path.stat().st_size
            if start > size:
                raise ValueError(f"expected a header within {size} bytes, found {length}")
            entry = json.loads(file.read(length))[tensor.tensor]
        dtype, shape = dtypes[entry["dtype"]], [int(dim) for dim in entry["shape"]]
        begin, end = entry["data_offsets"]
        if min(begin, *shape, 0) < 0 or end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"expected the bytes of {dtype} {shape}, found {begin} to {end}")
        if start + end > size:
            raise ValueError(f"expected data within {size} bytes, found it up to {start + end}")
        return np.memmap(path, dtype, "r", start + begin, tuple(shape))
    except (OSError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BundleError(f"{path}: tensor {tensor.tensor!r}: {error!r}") from None


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Writes a safetensors file and syncs it to disk.

    The data begins at a multiple of 64 bytes, and tensors of whole cache lines come first, so that
    their rows are aligned once the file is mapped. Nothing is copied: the safetensors library needs
    the memory of all tensors a second time.

    Raises:
        BundleError: a dtype that the engine cannot read.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    header: dict[str, Any] = {}
    end = 0
    order = sorted(
        arrays, key=lambda name: (arrays[name].nbytes % _LINE != 0, -arrays[name].itemsize, name)
    )
    for name in order:
        array = arrays[name]
        dtype = _SAFETENSORS_DTYPES.get(array.dtype.str)
        if dtype is None:
            raise BundleError(f"{path}: tensor {name!r}: cannot store dtype {array.dtype}")
        offsets = [end, end + array.nbytes]
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": offsets}
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _LINE)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            arrays[name].tofile(file)
    sync(path)


def write_bundle(staging: Path, manifest: Manifest, destination: Path) -> Manifest:
    """Hashes `manifest`'s files in `staging`, writes manifest.json there and renames the directory.

    `manifest.files` need only have the right keys (UNHASHED). They become read-only, as a server
    that maps them dies where one is changed in place; files that are links to another directory's
    keep their mode. The destination appears whole or not at all; a directory that stands there is
    replaced.
    """
    files = {name: hash_file(staging / name) for name in sorted(manifest.files)}
    for name in files:
        status = (staging / name).stat()
        if status.st_nlink == 1:
            (staging / name).chmod(status.st_mode & 0o444)
    complete = manifest.model_copy(update={"files": files})
    write_manifest(staging, complete)
    publish_directory(staging, destination)
    return complete


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Replaces `directory`/manifest.json in one step."""
    text = manifest.model_dump_json(indent=2, exclude_none=True) + "\n"
    replace_file(directory / MANIFEST, text.encode())


def versions(model: Path) -> list[int]:
    """Numbers of the version directories of a model in a repository, oldest first."""
    names = (path.name for path in model.iterdir() if path.is_dir()) if model.is_dir() else ()
    # Triton ignores names that start with 0.
    return sorted(int(name) for name in names if re.fullmatch("[1-9][0-9]*", name))


def latest_version(model: Path) -> Path:
    """The version directory that Triton serves.

    Raises:
        BundleError: the model has none.
    """
    numbers = versions(model)
    if not numbers:
        raise BundleError(f"{model}: no version directory; was it compiled?")
    return model / str(numbers[-1])


def newest_with(repository: Path, name: str) -> Iterator[Path]:
    """Of a model repository, the newest versions' directories that hold a file of this name."""
    for model in sorted(path for path in repository.glob("*") if versions(path)):
        directory = latest_version(model)
        if (directory / name).exists():
            yield directory


def read_record(kind: type[Record], path: Path) -> Record:
    """What a JSON file beside a compiled graph says.

    Raises:
        BundleError: it is damaged.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BundleError(f"{path}: {error.errors()[0]['msg']}") from None


def verify_file(path: Path, entry: FileEntry, record: str) -> None:
    """Holds a file against its entry in a record.

    Raises:
        BundleError: it is missing or damaged.
    """
    if not path.is_file() or hash_file(path, entry.chunk_bytes) != entry:
        raise BundleError(f"{path}: missing or changed; {record} has another size or SHA-256")
