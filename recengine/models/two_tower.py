"""Two-tower retrieval: user and item meet only in a cosine, so items are embedded ahead of time.

Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", 2019.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from recengine.bundle import Bag
from recengine.models.bags import Rows, TableShape, make_tables, mlp, pool_bags, total_dim


class TwoTowerConfig(BaseModel):
    """All that it takes to build a `TwoTower`."""

    model_config = ConfigDict(frozen=True)

    user_bags: tuple[Bag, ...]
    item_bags: tuple[Bag, ...]
    tables: dict[str, TableShape]
    num_user_dense: NonNegativeInt = 0
    num_item_dense: NonNegativeInt = 0
    hidden: tuple[PositiveInt, ...] = (128,)
    dim: PositiveInt = 64
    dropout: float = 0.1


class Tower(nn.Module):
    """Pooled embeddings (and dense features) to one vector: a linear map plus an MLP."""

    def __init__(self, config: TwoTowerConfig, bags: tuple[Bag, ...], num_dense: int) -> None:
        super().__init__()
        width = total_dim(bags, config.tables) + num_dense
        # Dense features arrive as they are; a graph input needs no scaling outside of the graph.
        self.scale = nn.BatchNorm1d(num_dense, affine=False) if num_dense else None
        self.linear = nn.Linear(width, config.dim)
        self.mlp = mlp((width, *config.hidden, config.dim), config.dropout)

    def forward(self, sparse: Tensor, dense: Tensor | None = None) -> Tensor:
        """Maps sparse [batch, bags' dims] (, dense [batch, n]) to [batch, dim], not normalised."""
        features = sparse if self.scale is None else torch.cat([sparse, self.scale(dense)], dim=1)
        vectors: Tensor = self.linear(features) + self.mlp(features)
        return vectors


class TwoTower(nn.Module):
    """Retrieval model. The score of a user and an item is the cosine of their towers' outputs.

    `tables` and the bags are the sparse half, `user_tower` and `item_tower` the dense half.
    """

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.user_bags = config.user_bags
        self.item_bags = config.item_bags
        self.tables = make_tables(config.tables)
        self.user_tower = Tower(config, config.user_bags, config.num_user_dense)
        self.item_tower = Tower(config, config.item_bags, config.num_item_dense)

    def users(self, rows: Rows, dense: Tensor | None = None) -> Tensor:
        """Unit user vectors [batch, dim]."""
        return F.normalize(self.user_tower(pool_bags(self.tables, self.user_bags, rows), dense))

    def items(self, rows: Rows, dense: Tensor | None = None) -> Tensor:
        """Unit item vectors [batch, dim]."""
        return F.normalize(self.item_tower(pool_bags(self.tables, self.item_bags, rows), dense))
