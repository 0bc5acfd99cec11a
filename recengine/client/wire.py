"""Named features of users -> the packed tensors of the wire contract. NumPy only."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from recengine.client.schema import Feature, Schema
from recengine.errors import InputError
from recengine.keys import NO_ITEM, hash_key

Ids: TypeAlias = Sequence[int | str] | npt.NDArray[np.integer[Any]]
Value: TypeAlias = int | str | float | Ids
User: TypeAlias = Mapping[str, Value]
Exclude: TypeAlias = Sequence[int | str] | npt.NDArray[np.integer[Any]]

_INT64 = np.iinfo(np.int64)
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_EXCLUDE = "exclude"


@dataclasses.dataclass(frozen=True, eq=False)
class WireUsers:
    """A batch of users as the server and the engine take it.

    Attributes:
        ids: int64 [batch, width]; per user the ids of all features in schema order, then the
            excluded items; what lies behind a row's lengths is padding.
        lengths: int32 [batch, features + 1]; how many ids each feature has, excluded items last.
        dense: float32 [batch, dense features], or None when the schema has none.
    """

    ids: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]
    dense: npt.NDArray[np.float32] | None


def pack_users(
    schema: Schema, users: Sequence[User], exclude: Sequence[Exclude] | None = None
) -> WireUsers:
    """Checks users against the schema and packs them.

    Args:
        schema: what the recommender takes.
        users: per user, feature name -> id, list of ids (oldest first) or, for a dense feature, a
            number. An absent sparse feature has length 0; of a longer list the last `max_length`
            ids are sent. Strings are taken where the schema says `hashed`.
        exclude: per user, item ids that must not be recommended; strings where the schema says
            `hashed_items`.

    Returns:
        The batch in wire order.

    Raises:
        InputError: naming the user's index and the feature.
    """
    if not users:
        raise InputError("[users] expected at least one user, found none")
    if exclude is not None and len(exclude) != len(users):
        raise InputError(
            f"[exclude] expected one list of item ids per user, {len(users)}, found {len(exclude)}"
        )
    for index, items in enumerate(() if exclude is None else exclude):
        if not (_is_sequence(items) or (isinstance(items, np.ndarray) and items.ndim)):
            raise InputError(
                f"[exclude] user {index}: expected a list of item ids, found {_type(items)}"
            )
    known = {feature.name for feature in schema.features}.union(schema.dense_features)
    flat: list[Any] = []
    lengths: list[int] = []
    for index, user in enumerate(users):
        if not isinstance(user, Mapping):
            raise InputError(
                f"[users] user {index}: expected a mapping of features, found {_type(user)}"
            )
        if not user.keys() <= known:
            unknown = min(map(str, user.keys() - known))
            raise InputError(
                f"[users] user {index}: unknown feature {unknown!r}; "
                f"the model takes {', '.join(sorted(known))}"
            )
        for feature in schema.features:
            lengths.append(_append(flat, user, feature, index))
        lengths.append(0 if exclude is None else _exclude(flat, exclude[index], index, schema))
    shaped = np.array(lengths, np.int32).reshape(len(users), -1)
    values = _int64(flat, shaped, schema)
    return WireUsers(_pad(values, shaped), shaped, _dense(schema, users))


def _append(flat: list[Any], user: User, feature: Feature, index: int) -> int:
    """Appends the ids of one feature of one user and tells how many."""
    value = user.get(feature.name)
    if value is None and feature.name not in user:
        return 0
    if type(value) is int:
        flat.append(value)
        return 1
    start = len(flat)
    ids = [value] if feature.hashed and isinstance(value, str) else value
    count = _extend(flat, ids, index, feature.name, feature.max_length)
    if feature.hashed:
        _hash_strings(flat, start)
    return count


def _exclude(flat: list[Any], items: Exclude, index: int, schema: Schema) -> int:
    """Appends the items that one user must not get and tells how many."""
    start = len(flat)
    count = _extend(flat, items, index, _EXCLUDE)
    if schema.hashed_items:
        _hash_strings(flat, start)
    return count


def _hash_strings(flat: list[Any], start: int) -> None:
    flat[start:] = [hash_key(key) if isinstance(key, str) else key for key in flat[start:]]


def _extend(
    flat: list[Any], value: Any, index: int, name: str, max_length: int | None = None
) -> int:
    if isinstance(value, np.ndarray):
        if value.ndim > 1:
            raise InputError(
                f"[users] user {index}, {name!r}: expected ids [length], "
                f"found an array of shape {list(value.shape)}"
            )
        value = np.atleast_1d(value).tolist()
    elif not isinstance(value, (list, tuple)):
        value = list(value) if _is_sequence(value) else [value]
    ids = value if max_length is None else value[-max_length:]
    flat.extend(ids)
    return len(ids)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))


def _int64(flat: list[Any], lengths: npt.NDArray[np.int32], schema: Schema) -> Any:
    """The ids as one int64 array; looks at each one only when some are not plain integers."""
    if set(map(type, flat)) <= {int}:
        try:
            return np.array(flat, np.int64)
        except OverflowError:
            pass
    ids = []
    for (index, name), value in zip(_owners(lengths, schema), flat, strict=True):
        if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
            hint = "; the schema does not hash these keys" if isinstance(value, str) else ""
            raise InputError(
                f"[users] user {index}, {name!r}: expected an int64 id, "
                f"found {_type(value)} {value!r:.40}{hint}"
            )
        number = operator.index(value)
        if not _INT64.min <= number <= _INT64.max:
            raise InputError(
                f"[users] user {index}, {name!r}: expected an id in int64, found {number}"
            )
        ids.append(number)
    return np.array(ids, np.int64)


def _owners(lengths: npt.NDArray[np.int32], schema: Schema) -> Iterator[tuple[int, str]]:
    """For each packed id: its user's index and the name it came under."""
    names = [feature.name for feature in schema.features] + [_EXCLUDE]
    for index, row in enumerate(lengths.tolist()):
        for name, count in zip(names, row, strict=True):
            for _ in range(count):
                yield index, name


def _pad(values: npt.NDArray[np.int64], lengths: npt.NDArray[np.int32]) -> Any:
    """Ids of all users back to back -> [batch, width], width at least 1."""
    totals = lengths.sum(axis=1, dtype=np.int64)
    width = max(1, int(totals.max()))
    ids = np.full((len(totals), width), NO_ITEM, np.int64)
    ids[np.arange(width) < totals[:, None]] = values
    return ids


def _dense(schema: Schema, users: Sequence[User]) -> npt.NDArray[np.float32] | None:
    if not schema.dense_features:
        return None
    rows = [
        [_number(user, name, index) for name in schema.dense_features]
        for index, user in enumerate(users)
    ]
    return np.array(rows, np.float32)


def _number(user: User, name: str, index: int) -> float:
    value: Any = user.get(name)
    numeric = isinstance(value, (int, float, np.integer, np.floating))
    if not numeric or isinstance(value, bool):
        found = "nothing" if name not in user else f"{_type(value)} {value!r:.40}"
        raise InputError(f"[users] user {index}, {name!r}: expected a number, found {found}")
    if not -_FLOAT32_MAX <= value <= _FLOAT32_MAX:
        raise InputError(
            f"[users] user {index}, {name!r}: expected a finite float32, found {value}"
        )
    return float(value)


def _type(value: Any) -> str:
    return type(value).__name__
