"""A recommender on disk: two safetensors files and one JSON file, no pickle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recengine._files import publish_directory, refuse_file
from recengine.data.dataset import Ragged
from recengine.errors import BundleError, InputError
from recengine.models import DLRM, DLRMConfig, TwoTower, TwoTowerConfig
from recengine.training.recommender import FeatureSpec, Quality, Recommender, Requests

FORMAT_VERSION = 1
_JSON = "recommender.json"
_RETRIEVAL = "retrieval.safetensors"
_RANKING = "ranking.safetensors"
_ARRAYS = "arrays."
_PICKLES = (".ckpt", ".pt", ".pth", ".pkl", ".bin")


def save(recommender: Recommender, directory: Path | str) -> None:
    """Writes the checkpoint directory; what stood there is replaced in one step.

    `retrieval.safetensors` holds the retrieval weights and, under `arrays.`, vocabularies, the
    catalog and the held-out users; `ranking.safetensors` the ranking weights; `recommender.json`
    the rest.
    """
    directory = Path(directory)
    staging = _staging(directory)
    arrays = {_ARRAYS + name: array for name, array in _arrays(recommender).items()}
    save_file(
        _weights(recommender.retrieval)
        | {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()},
        staging / _RETRIEVAL,
    )
    save_file(_weights(recommender.ranking), staging / _RANKING)
    (staging / _JSON).write_text(json.dumps(_description(recommender), indent=2) + "\n")
    for name in (_RETRIEVAL, _RANKING):  # safetensors lets nobody but the owner read them
        shutil.copymode(staging / _JSON, staging / name)
    publish_directory(staging, directory)


def require_writable(directory: Path | str) -> None:
    """Finds out before the training whether `save` can write its directory.

    Raises:
        OSError: it cannot.
    """
    directory = Path(directory)
    try:
        _staging(directory).rmdir()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(directory)) from None


def _staging(directory: Path) -> Path:
    """An empty directory beside `directory`, which it may become."""
    refuse_file(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = directory.with_name(f".{directory.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    return staging


def load(path: Path | str) -> Recommender:
    """Reads a checkpoint directory.

    Raises:
        BundleError: something is missing, damaged, or of another format version.
        InputError: `path` is a pickle file.
    """
    directory = Path(path)
    refuse_pickle(directory)
    description = _read_json(directory / _JSON)
    retrieval = TwoTower(TwoTowerConfig.model_validate(description["retrieval"]))
    ranking = DLRM(DLRMConfig.model_validate(description["ranking"]))
    _restore(retrieval, directory / _RETRIEVAL)
    _restore(ranking, directory / _RANKING)
    arrays = {
        name.removeprefix(_ARRAYS): array
        for name, array in load_arrays(directory / _RETRIEVAL).items()
        if name.startswith(_ARRAYS)
    }
    return Recommender(
        name=description["name"],
        features=tuple(FeatureSpec(**spec) for spec in description["features"]),
        dense_features=tuple(description["dense_features"]),
        item_features=tuple(FeatureSpec(**spec) for spec in description["item_features"]),
        item_vocabulary=description["item_vocabulary"],
        vocabularies=_named(arrays, "vocabulary."),
        retrieval=retrieval.eval(),
        ranking=ranking.eval(),
        item_rows=_named(arrays, "item_rows."),
        item_dense=arrays["item_dense"],
        popularity=arrays["popularity"],
        num_candidates=description["num_candidates"],
        k=description["k"],
        held_out=_requests(arrays),
        quality=tuple(Quality(**row) for row in description["quality"]),
        dense_means=description.get("dense_means", {}),
        dataset=description["dataset"],
    )


def refuse_pickle(path: Path, *, trust: bool = False) -> None:
    """Pickle files run code when they are read, so only a caller who says `trust` gets them read.

    Raises:
        InputError: `path` is such a file and `trust` is False.
    """
    if path.suffix in _PICKLES and not trust:
        raise InputError(
            f"{path}: expected a checkpoint directory with {_JSON}, found a pickle file; "
            "reading one runs the code in it"
        )


def load_pickled_weights(path: Path | str, *, trust: bool = False) -> dict[str, Tensor]:
    """The state dict of a `.ckpt` or `.pt` file, e.g. one that Lightning wrote.

    Args:
        path: the file.
        trust: read it at all; even then objects other than tensors and plain values are refused.

    Raises:
        InputError: `trust` is False, or the file holds something else.
    """
    path = Path(path)
    refuse_pickle(path, trust=trust)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path}: expected plain weights: {error}") from None
    weights = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise InputError(
            f"{path}: expected a state dict of tensors, found {type(weights).__name__}"
        )
    return weights


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def _arrays(recommender: Recommender) -> dict[str, NDArray[Any]]:
    held_out = recommender.held_out
    arrays: dict[str, NDArray[Any]] = {
        "item_dense": recommender.item_dense,
        "popularity": recommender.popularity,
        "held_out.dense": held_out.dense,
        "held_out.targets": held_out.targets,
    }
    for name, keys in recommender.vocabularies.items():
        arrays[f"vocabulary.{name}"] = keys
    for name, rows in recommender.item_rows.items():
        arrays[f"item_rows.{name}"] = rows
    for name, ids in [*held_out.features.items(), ("", held_out.excluded)]:
        kind = f"held_out.feature.{name}" if name else "held_out.excluded"
        arrays[f"{kind}.values"], arrays[f"{kind}.offsets"] = ids.values, ids.offsets
    return arrays


def _requests(arrays: Mapping[str, NDArray[Any]]) -> Requests:
    feature = "held_out.feature."
    names = [
        name.removeprefix(feature).removesuffix(".values")
        for name in arrays
        if name.startswith(feature) and name.endswith(".values")
    ]
    return Requests(
        features={
            name: Ragged(
                arrays[f"{feature}{name}.values"],
                arrays[f"{feature}{name}.offsets"],
            )
            for name in names
        },
        dense=arrays["held_out.dense"],
        excluded=Ragged(arrays["held_out.excluded.values"], arrays["held_out.excluded.offsets"]),
        targets=arrays["held_out.targets"],
    )


def _named(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _description(recommender: Recommender) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "name": recommender.name,
        "features": [asdict(spec) for spec in recommender.features],
        "dense_features": list(recommender.dense_features),
        "dense_means": recommender.dense_means,
        "item_features": [asdict(spec) for spec in recommender.item_features],
        "item_vocabulary": recommender.item_vocabulary,
        "num_candidates": recommender.num_candidates,
        "k": recommender.k,
        "retrieval": recommender.retrieval.config.model_dump(mode="json"),
        "ranking": recommender.ranking.config.model_dump(mode="json"),
        "dataset": recommender.dataset,
        "quality": [asdict(row) for row in recommender.quality],
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{path}: no such file; is this a checkpoint directory?") from None
    except ValueError as error:
        raise BundleError(f"{path}: not JSON: {error}") from None
    version = description.get("format_version") if isinstance(description, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{path}: format_version is {version!r}, this recengine reads {FORMAT_VERSION}"
        )
    return dict(description)


def _restore(model: nn.Module, path: Path) -> None:
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise BundleError(f"{path}: missing from the checkpoint") from None
    except SafetensorError as error:
        raise BundleError(f"{path}: not safetensors: {error}") from None
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(_ARRAYS)}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise BundleError(f"{path}: not the weights that {_JSON} describes: {error}") from None
