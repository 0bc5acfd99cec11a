"""Client of a served recommender; needs NumPy and tritonclient only.

`RecommenderClient` blocks, `recengine.client.aio.RecommenderClient` is its asyncio twin. Packing
(`Schema`, `pack_users`) also feeds the in-process engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recengine.client.answer import Recommendations
from recengine.client.schema import Feature, Schema
from recengine.client.wire import User, WireUsers, pack_users

if TYPE_CHECKING:
    from recengine.client.sync import RecommenderClient

__all__ = [
    "Feature",
    "Recommendations",
    "RecommenderClient",
    "Schema",
    "User",
    "WireUsers",
    "pack_users",
]


def __getattr__(name: str) -> Any:
    # gRPC takes a quarter of a second to import; who only packs users does not pay for it.
    if name == "RecommenderClient":
        from recengine.client.sync import RecommenderClient

        return RecommenderClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
