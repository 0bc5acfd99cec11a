"""The sparse half of every model: embedding tables and the bags that pool their rows.

It means exactly what the engine's `embedding_bag` means, so that export only copies the tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor, nn

from recengine.bundle import Bag

PADDING = -1
"""Marks the places left of a list's first row."""

Rows = Mapping[str, Tensor]
"""Table rows int64 [batch, width] by feature name, right-aligned, PADDING before the first."""


class TableShape(BaseModel):
    """Size of one embedding table; row 0 is the out-of-vocabulary row."""

    model_config = ConfigDict(frozen=True)

    rows: PositiveInt
    dim: PositiveInt


def make_tables(shapes: Mapping[str, TableShape]) -> nn.ParameterDict:
    """Embedding weights [rows, dim] by table name, drawn so that a row has a norm of about 1."""
    return nn.ParameterDict(
        {
            name: nn.Parameter(torch.randn(shape.rows, shape.dim) * shape.dim**-0.5)
            for name, shape in shapes.items()
        }
    )


def pool(weight: Tensor, rows: Tensor, pooling: str) -> Tensor:
    """Sum or mean of the weight rows of each list; an empty list gives zeros.

    Args:
        weight: [table rows, dim].
        rows: int64 [batch, width], PADDING where there is none.
        pooling: "sum" or "mean".

    Returns:
        [batch, dim].
    """
    known = rows != PADDING
    lengths = known.sum(1)
    offsets = F.pad(lengths.cumsum(0)[:-1], (1, 0))
    return F.embedding_bag(rows[known], weight, offsets, mode=pooling)


def pool_bags(tables: nn.ParameterDict, bags: Sequence[Bag], rows: Rows) -> Tensor:
    """Pools each bag over the last `max_length` rows of its feature and concatenates in bag order.

    Returns:
        [batch, sum of the bags' dims].
    """
    return torch.cat(
        [
            pool(tables[bag.table], rows[bag.feature][:, -bag.max_length :], bag.pooling)
            for bag in bags
        ],
        dim=1,
    )


def total_dim(bags: Sequence[Bag], shapes: Mapping[str, TableShape]) -> int:
    """Width of `pool_bags`."""
    return sum(shapes[bag.table].dim for bag in bags)


def mlp(widths: Sequence[int], dropout: float) -> nn.Sequential:
    """Linear layers of these widths with ReLU and dropout between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers[:-2])
