"""String keys become int64 ids once, at the edge: nothing in the hot path carries text."""

from __future__ import annotations

import hashlib

NO_ITEM = -1
"""The id that means "no item"; it is never an item's key."""


def hash_key(text: str) -> int:
    """The id of a string key: the first 63 bits of its BLAKE2b digest, so never negative.

    Args:
        text: any string; it is hashed as UTF-8.

    Returns:
        An id in [0, 2**63). Export refuses a vocabulary in which two keys share one.
    """
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
