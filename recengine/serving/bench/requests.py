"""Requests to load a server with: valid ids, real or skewed, with real history lengths."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from recengine.bundle import Manifest, Vocabulary, load_tensor, read_manifest
from recengine.errors import BundleError

Distribution = Literal["reference", "zipf", "uniform"]
ZIPF_EXPONENT = 1.05


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """One user on the wire.

    Attributes:
        ids: int64 [width], features in schema order, then the excluded items.
        lengths: int32 [features + 1].
        dense: float32 [dense features], or None.
    """

    ids: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]
    dense: npt.NDArray[np.float32] | None

    def tensors(self) -> Iterator[tuple[str, str, npt.NDArray[Any]]]:
        """Name, Triton type and array of each input tensor that is there."""
        yield "ids", "INT64", self.ids
        yield "lengths", "INT32", self.lengths
        if self.dense is not None:
            yield "dense", "FP32", self.dense


def reference_requests(directory: Path) -> list[Request]:
    """The held-out users of a bundle, as they are.

    Raises:
        BundleError: the bundle has no reference.
    """
    manifest = read_manifest(directory)
    if manifest.reference is None:
        raise BundleError(f"{directory}: has no reference users; draw ids with zipf or uniform")
    tensors = load_file(directory / manifest.reference.file)
    dense = tensors.get("dense")
    requests = []
    for user, lengths in enumerate(tensors["lengths"]):
        row = None if dense is None else dense[user].astype(np.float32)
        width = int(lengths.sum())
        requests.append(Request(tensors["ids"][user, :width], lengths.astype(np.int32), row))
    return requests


def draw_requests(
    directory: Path, count: int, distribution: Distribution, seed: int = 0
) -> list[Request]:
    """Draws `count` users of a bundle or version directory.

    Args:
        directory: holds manifest.json.
        count: number of requests.
        distribution: `reference` repeats the held-out users in random order; `zipf` (exponent
            1.05) and `uniform` draw known ids, with the lists' lengths of the held-out users where
            the directory has them, else uniform up to each feature's max_length.
        seed: of the generator.

    Returns:
        The requests; the same for the same arguments.

    Raises:
        BundleError: the directory has no manifest, or no reference where one is asked for.
    """
    rng = np.random.default_rng(seed)
    manifest = read_manifest(directory)
    if distribution == "reference":
        users = reference_requests(directory)
        order = [
            int(i) for _ in range(-(-count // len(users))) for i in rng.permutation(len(users))
        ]
        return [users[i] for i in order[:count]]
    lengths = _draw_lengths(directory, manifest, count, rng)
    names = [feature.vocabulary for feature in manifest.features] + [manifest.item_vocabulary]
    drawers = {
        name: _Drawer(vocabulary_keys(directory, manifest.vocabularies[name]), distribution, rng)
        for name in sorted(set(names))
    }
    requests = []
    for row in lengths:
        ids = [drawers[name].draw(int(n)) for name, n in zip(names, row, strict=True)]
        dense = rng.standard_normal(len(manifest.dense_features), np.float32)
        requests.append(Request(np.concatenate(ids), row, dense if dense.size else None))
    return requests


def vocabulary_keys(directory: Path, vocabulary: Vocabulary) -> npt.NDArray[np.int64]:
    """The known raw ids in row order: key i has row i + 1."""
    if vocabulary.keys is None or vocabulary.rows is None:
        return np.arange(vocabulary.first, vocabulary.first + vocabulary.count, dtype=np.int64)
    slots = load_tensor(directory, vocabulary.keys)
    rows = load_tensor(directory, vocabulary.rows)
    keys = np.empty(vocabulary.count, np.int64)
    used = rows > 0
    keys[rows[used] - 1] = slots[used]
    return keys


class _Drawer:
    """Draws known ids of one vocabulary; under `zipf` which ids are frequent is random."""

    def __init__(
        self, keys: npt.NDArray[np.int64], distribution: Distribution, rng: np.random.Generator
    ) -> None:
        self._rng = rng
        self._keys = rng.permutation(keys)
        exponent = ZIPF_EXPONENT if distribution == "zipf" else 0.0
        self._cumulative = np.cumsum(np.arange(1, len(keys) + 1, dtype=np.float64) ** -exponent)

    def draw(self, count: int) -> npt.NDArray[np.int64]:
        if not len(self._keys):
            return np.empty(0, np.int64)
        points = self._rng.random(count) * self._cumulative[-1]
        places = np.searchsorted(self._cumulative, points, side="right")
        return np.asarray(self._keys[places], np.int64)


def _draw_lengths(
    directory: Path, manifest: Manifest, count: int, rng: np.random.Generator
) -> npt.NDArray[np.int32]:
    known = [manifest.vocabularies[f.vocabulary].count > 0 for f in manifest.features]
    if manifest.reference is not None:
        rows = load_file(directory / manifest.reference.file)["lengths"]
        lengths = rows[rng.integers(0, len(rows), count)].astype(np.int32)
    else:
        longest = [feature.max_length for feature in manifest.features] + [0]
        lengths = np.stack([rng.integers(min(1, n), n + 1, count) for n in longest], axis=1)
        lengths = lengths.astype(np.int32)
    return np.asarray(lengths * np.array([*known, True]), np.int32)


def write_input_data(path: Path, requests: Sequence[Request]) -> None:
    """Writes requests as perf_analyzer's `--input-data`; it goes through them in a circle."""
    rows = [
        {
            name: {"content": array.tolist(), "shape": list(array.shape)}
            for name, _, array in request.tensors()
        }
        for request in requests
    ]
    path.write_text(json.dumps({"data": rows}))
