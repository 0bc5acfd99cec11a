"""What a served recommender takes and gives: the JSON of the model parameter `recengine.schema`."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from recengine.errors import InputError

SCHEMA_PARAMETER = "recengine.schema"
"""Name of the model config parameter that carries the schema."""


@dataclasses.dataclass(frozen=True)
class Feature:
    """A sparse user feature: a list of ids, oldest first, of which the last `max_length` count.

    `hashed` says that the keys are strings, hashed by `recengine.keys.hash_key`.
    """

    name: str
    max_length: int
    hashed: bool = False


@dataclasses.dataclass(frozen=True)
class Schema:
    """Features in wire order, and the sizes of a request and its answer.

    Attributes:
        name: the recommender's name.
        features: sparse user features, in wire order.
        dense_features: dense user features, in wire order.
        num_items: items in the catalog.
        num_candidates: items retrieved when the caller does not say.
        max_candidates: most items that a request may ask for.
        k: items returned when the caller does not say.
        hashed_items: the items' keys are strings, hashed by `recengine.keys.hash_key`.
        dense_defaults: by name, what a dense feature counts as that a user does not have; one that
            is not here must be given.
    """

    name: str
    features: tuple[Feature, ...]
    dense_features: tuple[str, ...]
    num_items: int
    num_candidates: int
    max_candidates: int
    k: int
    hashed_items: bool = False
    dense_defaults: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)

    @staticmethod
    def from_json(text: str) -> Schema:
        """Reads what `to_json` wrote; fields that this version does not know are ignored.

        Raises:
            InputError: the text is not JSON, or a field is missing or of the wrong type.
        """
        try:
            raw = json.loads(text)
            if not isinstance(raw, dict):
                raise InputError(f"[schema] expected a JSON object, found {type(raw).__name__}")
            return Schema(
                name=_typed(raw, "name", str),
                features=tuple(_feature(item) for item in _typed(raw, "features", list)),
                dense_features=tuple(str(name) for name in _typed(raw, "dense_features", list)),
                num_items=_typed(raw, "num_items", int),
                num_candidates=_typed(raw, "num_candidates", int),
                max_candidates=_typed(raw, "max_candidates", int),
                k=_typed(raw, "k", int),
                hashed_items=bool(raw.get("hashed_items", False)),
                dense_defaults=_defaults(raw),
            )
        except json.JSONDecodeError as error:
            raise InputError(f"[schema] not JSON: {error}") from None

    def to_json(self) -> str:
        """The schema as one line of JSON."""
        fields = dataclasses.asdict(self)
        if not self.dense_defaults:
            del fields["dense_defaults"]
        return json.dumps(fields, separators=(",", ":"))


def contract(
    features: Sequence[Feature], dense_features: Sequence[str], hashed_items: bool
) -> dict[str, list[str] | bool]:
    """What requests of clients that read another schema must agree in, by its name there.

    Longer lists are no such thing: the server takes the last ids itself.
    """
    return {
        "features": [feature.name for feature in features],
        "hashed": [feature.name for feature in features if feature.hashed],
        "dense_features": list(dense_features),
        "hashed_items": hashed_items,
    }


def _feature(raw: Any) -> Feature:
    if not isinstance(raw, dict):
        raise InputError(f"[schema] features: expected JSON objects, found {type(raw).__name__}")
    return Feature(
        name=_typed(raw, "name", str),
        max_length=_typed(raw, "max_length", int),
        hashed=bool(raw.get("hashed", False)),
    )


def _defaults(raw: dict[str, Any]) -> dict[str, float]:
    values = _typed({"dense_defaults": {}, **raw}, "dense_defaults", dict)
    for name, value in values.items():
        if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
            raise InputError(
                f"[schema] dense_defaults: {name!r}: expected a finite number, found {value!r}"
            )
    return {name: float(value) for name, value in values.items()}


def _typed(raw: dict[str, Any], key: str, kind: type[Any]) -> Any:
    value = raw.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        found = "nothing" if key not in raw else repr(value)
        raise InputError(f"[schema] {key}: expected {kind.__name__}, found {found}")
    return value
