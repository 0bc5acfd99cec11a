"""A data set seen from the terminal: titles of items, features and history of users."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from recengine.client import Schema, User, WireUsers, pack_users
from recengine.client.wire import Value
from recengine.data import Dataset
from recengine.errors import InputError
from recengine.keys import hash_key

_TITLE = re.compile("title|name", re.IGNORECASE)
_GENRES = re.compile("genre|class|categor", re.IGNORECASE)


class Catalog:
    """Looks up by raw id."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._item_rows = {item: row for row, item in enumerate(dataset.items.ids.tolist())}
        self._user_rows = {user: row for row, user in enumerate(dataset.users.ids.tolist())}
        self._titles = self._column(_TITLE)
        self._genres = self._column(_GENRES)

    def title(self, item: int) -> str:
        """The item's title, or where the data set has none its id, as it stands there."""
        row, keys = self._item_rows.get(item), self._dataset.items.keys
        if row is None:
            return str(item)
        title = self._titles[row] if self._titles else ""
        return title or (keys[row] if keys else str(item))

    def genres(self, item: int) -> str:
        """The item's genres, if the data set has any."""
        row = self._item_rows.get(item)
        return self._genres[row] if self._genres and row is not None else ""

    def user_id(self, text: str) -> int:
        """What the user wrote as the data set's id.

        Raises:
            InputError: it is not an id of this data set.
        """
        number = text.removeprefix("-").isdecimal()
        if not (self._dataset.hashed_users or number):
            raise InputError(f"[user] expected a number, found {text!r}")
        user = hash_key(text) if self._dataset.hashed_users else int(text)
        if user not in self._user_rows:
            raise InputError(f"[user] {text} is not in the data set {self._dataset.name!r}")
        return user

    def history(self, user: int) -> list[int]:
        """Items that the user took, oldest first."""
        interactions = self._dataset.interactions
        taken: list[int] = interactions.items[interactions.users == user].tolist()
        return taken

    def features(self, user: int) -> User:
        """Named features of a user, as training names them; unknown values are left out."""
        row, table = self._user_rows[user], self._dataset.users
        values: dict[str, Value] = {"user_id": user, "history": self.history(user)}
        values |= {name: lists[row] for name, lists in table.sparse.items()}
        dense = {name: float(column[row]) for name, column in table.dense.items()}
        return values | {name: value for name, value in dense.items() if not math.isnan(value)}

    def pack(self, schema: Schema, users: Sequence[int]) -> WireUsers:
        """Users as a request takes them; items that they took are not to be recommended.

        Only features that the schema names are taken.
        """
        taken = {feature.name for feature in schema.features}.union(schema.dense_features)
        asking = [
            {name: value for name, value in self.features(user).items() if name in taken}
            for user in users
        ]
        return pack_users(schema, asking, [self.history(user) for user in users])

    def _column(self, pattern: re.Pattern[str]) -> list[str] | None:
        text = self._dataset.items.text
        return next((text[name] for name in text if pattern.search(name)), None)
