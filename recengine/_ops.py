"""The native module. Nothing else imports `recengine._native`."""

from recengine._native import (
    EmbeddingTable,
    Engine,
    ItemIndex,
    LiveItemIndex,
    Vocabulary,
    build_slots,
    cosine_topk,
    cuda_built,
    cuda_devices,
    default_isa,
    embedding_bag,
    order,
    sha256,
    supported_isas,
    usable_cores,
)

__all__ = [
    "EmbeddingTable",
    "Engine",
    "ItemIndex",
    "LiveItemIndex",
    "Vocabulary",
    "build_slots",
    "cosine_topk",
    "cuda_built",
    "cuda_devices",
    "default_isa",
    "embedding_bag",
    "order",
    "sha256",
    "supported_isas",
    "usable_cores",
]
