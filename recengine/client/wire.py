"""Named features of users -> the packed tensors of the wire contract. NumPy only."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from recengine.client.schema import Feature, Schema
from recengine.errors import InputError
from recengine.keys import NO_ITEM, hash_key

Ids: TypeAlias = Sequence[int | str] | npt.NDArray[np.integer[Any]]
Value: TypeAlias = int | str | float | Ids | None
User: TypeAlias = Mapping[str, Value]
Exclude: TypeAlias = Ids | Set[int | str]

_INT64 = np.iinfo(np.int64)
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_EXCLUDE = "exclude"
_LEAST_HASH = 1 << 32  # one string of two billion has a smaller one


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
    schema: Schema, users: Sequence[User], exclude: Sequence[Exclude | None] | None = None
) -> WireUsers:
    """Checks users against the schema and packs them.

    Args:
        schema: what the recommender takes.
        users: per user, feature name -> id, list of ids (oldest first) or, for a dense feature, a
            number. None is as absent: a sparse feature has length 0, a dense one counts as its
            `dense_defaults`. Of a longer list the last `max_length` ids are sent. Strings are
            taken where the schema says `hashed`, or their hashes, as answers hold them; smaller
            numbers are refused there. Whether a user is known is judged by sparse ids alone: one
            with dense features only gets the fallback list.
        exclude: per user, a list or set of item ids that must not be recommended, or None;
            strings where the schema says `hashed_items`.

    Returns:
        The batch in wire order.

    Raises:
        InputError: naming the user's index and the feature.
    """
    check_users(users)
    if exclude is not None and (not _is_list(exclude) or len(exclude) != len(users)):
        found = len(exclude) if _is_list(exclude) else _type(exclude)
        raise InputError(
            f"[exclude] expected one list of item ids per user, {len(users)}, found {found}"
        )
    for index, items in enumerate(() if exclude is None else exclude):
        if items is not None and not _is_list(items) and not isinstance(items, Set):
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
    values = int64_ids(flat, _places(shaped, schema))
    return WireUsers(_pad(values, shaped), shaped, _dense(schema, users))


def check_users(users: Any) -> None:
    """Refuses what is no batch.

    Raises:
        InputError: it is not a sequence, or an empty one.
    """
    if not _is_sequence(users):
        raise InputError(f"[users] expected a sequence of users, found {_type(users)}")
    if not users:
        raise InputError("[users] expected at least one user, found none")


def check_wire(schema: Schema, wire: WireUsers) -> None:
    """Whether packed users have the dtypes and shapes of the schema; the server checks values.

    Raises:
        InputError: naming the array, or there is no user.
    """
    _check_array("ids", wire.ids, np.int64)
    if not len(wire.ids):
        raise InputError("[users] expected at least one user, found none")
    _check_array("lengths", wire.lengths, np.int32, (len(wire.ids), len(schema.features) + 1))
    if schema.dense_features:
        _check_array("dense", wire.dense, np.float32, (len(wire.ids), len(schema.dense_features)))
    elif wire.dense is not None:
        raise InputError(
            "[users] dense: expected None, as the model has no dense features, "
            f"found {_described(wire.dense)}"
        )


def _check_array(
    name: str, array: Any, dtype: type[np.generic], shape: tuple[int, int] | None = None
) -> None:
    fits = isinstance(array, np.ndarray) and array.dtype == dtype and array.ndim == 2
    if not fits or (shape is not None and array.shape != shape):
        dims = "[batch, width]" if shape is None else list(shape)
        raise InputError(
            f"[users] {name}: expected {dtype.__name__} {dims}, found {_described(array)}"
        )


def _described(array: Any) -> str:
    is_array = isinstance(array, np.ndarray)
    return f"{array.dtype} {list(array.shape)}" if is_array else _type(array)


def _append(flat: list[Any], user: User, feature: Feature, index: int) -> int:
    """Appends the ids of one feature of one user and tells how many."""
    value = user.get(feature.name)
    if value is None:
        return 0
    if type(value) is int and not feature.hashed:
        flat.append(value)
        return 1
    start = len(flat)
    ids = [value] if feature.hashed and isinstance(value, str) else value
    count = _extend(flat, ids, index, feature.name, feature.max_length)
    if feature.hashed:
        _refuse_numbers(flat[start:], index, feature.name)
        flat[start:] = hash_strings(flat[start:])
    return count


def _refuse_numbers(keys: list[Any], index: int, name: str) -> None:
    """Raises InputError where a key of a hashed feature is neither a string nor can be a hash."""
    for key in keys:
        whole = isinstance(key, (int, np.integer))
        if not isinstance(key, str) and not (whole and (key == NO_ITEM or key >= _LEAST_HASH)):
            raise InputError(
                f"[users] user {index}, {name!r}: expected strings, which the schema hashes, "
                f"found {_type(key)} {key!r:.40}"
            )


def _exclude(flat: list[Any], items: Exclude | None, index: int, schema: Schema) -> int:
    """Appends the items that one user must not get and tells how many."""
    if items is None:
        return 0
    start = len(flat)
    count = _extend(flat, list(items) if isinstance(items, Set) else items, index, _EXCLUDE)
    if schema.hashed_items:
        flat[start:] = hash_strings(flat[start:])
    return count


def hash_strings(keys: list[Any]) -> list[Any]:
    """Keys with strings hashed, others as they are."""
    return [hash_key(key) if isinstance(key, str) else key for key in keys]


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
    with suppress(ValueError):  # arrays among the ids are refused later
        if NO_ITEM in ids:
            ids = value  # among items it is padding, which the server leaves out before it cuts
    flat.extend(ids)
    return len(ids)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))


def _is_list(value: Any) -> bool:
    return _is_sequence(value) or (isinstance(value, np.ndarray) and value.ndim > 0)


def int64_ids(keys: list[Any], places: Iterable[str]) -> npt.NDArray[np.int64]:
    """The keys as one int64 array; looks at each one only when some are not plain integers.

    Args:
        keys: what should be integers.
        places: of each key, the words for where it stands.

    Raises:
        InputError: naming the first place that has no int64.
    """
    if set(map(type, keys)) <= {int}:
        try:
            return np.array(keys, np.int64)
        except OverflowError:
            pass
    ids = []
    for place, value in zip(places, keys, strict=True):
        try:
            number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
        except TypeError:
            number = None
        if number is None:
            hint = "; the schema does not hash these keys" if isinstance(value, str) else ""
            raise InputError(
                f"{place}: expected an int64 id, found {_type(value)} {value!r:.40}{hint}"
            )
        if not _INT64.min <= number <= _INT64.max:
            raise InputError(f"{place}: expected an id in int64, found {number}")
        ids.append(number)
    return np.array(ids, np.int64)


def _places(lengths: npt.NDArray[np.int32], schema: Schema) -> Iterator[str]:
    """For each packed id: its user's index and the name it came under."""
    names = [feature.name for feature in schema.features] + [_EXCLUDE]
    for index, row in enumerate(lengths.tolist()):
        for name, count in zip(names, row, strict=True):
            yield from [f"[users] user {index}, {name!r}"] * count


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
        [_number(user, name, index, schema) for name in schema.dense_features]
        for index, user in enumerate(users)
    ]
    return np.array(rows, np.float32)


def _number(user: User, name: str, index: int, schema: Schema) -> float:
    value: Any = user.get(name)
    if value is None and name in schema.dense_defaults:
        return schema.dense_defaults[name]
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
