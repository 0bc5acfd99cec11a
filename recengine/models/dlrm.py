"""DLRM ranker: embeddings, their pairwise dot products and an MLP, beside the retrieval score.

Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems",
2019. Whatever depends on the user alone is computed once per user, not once per candidate.
"""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from recengine.bundle import Bag
from recengine.errors import InputError
from recengine.models.bags import Rows, TableShape, make_tables, mlp, pool_bags


class DLRMConfig(BaseModel):
    """All that it takes to build a `DLRM`; every table has `dim` columns."""

    model_config = ConfigDict(frozen=True)

    user_bags: tuple[Bag, ...]
    item_bags: tuple[Bag, ...]
    tables: dict[str, TableShape]
    num_user_dense: NonNegativeInt = 0
    num_item_dense: NonNegativeInt = 0
    dim: PositiveInt = 32
    hidden: tuple[PositiveInt, ...] = (64, 32)
    dropout: float = 0.1


class Ranker(nn.Module):
    """The dense half of `DLRM`: one graph over all candidates of a batch of users."""

    score_weight: Tensor

    def __init__(self, config: DLRMConfig) -> None:
        super().__init__()
        self.dim = config.dim
        self.num_user_fields = len(config.user_bags) + bool(config.num_user_dense)
        self.num_item_fields = len(config.item_bags)
        user_width = self.num_user_fields * (self.dim + (self.num_user_fields - 1) / 2)
        item_width = self.num_item_fields * (self.dim + (self.num_item_fields - 1) / 2)
        crosses = self.num_user_fields * self.num_item_fields
        self.bottom = (
            nn.Sequential(
                nn.BatchNorm1d(config.num_user_dense, affine=False),
                nn.Linear(config.num_user_dense, self.dim),
                nn.ReLU(),
            )
            if config.num_user_dense
            else None
        )
        # The first layer of the top MLP, split by what its inputs depend on.
        self.first_user = nn.Linear(int(user_width), config.hidden[0])
        self.first_item = nn.Linear(
            int(item_width) + config.num_item_dense + crosses, config.hidden[0], bias=False
        )
        self.dropout = nn.Dropout(config.dropout)
        self.top = mlp((*config.hidden, 1), config.dropout)
        self.register_buffer("score_weight", torch.tensor(0.0))

    def forward(
        self,
        sparse: Tensor,
        items: Tensor,
        candidate_scores: Tensor,
        dense: Tensor | None = None,
    ) -> Tensor:
        """Scores of candidates, higher is better: interactions plus the weighted retrieval score.

        Args:
            sparse: [batch, user bags * dim].
            items: [batch, n, item width], rows of the item table.
            candidate_scores: [batch, n], from the retrieval.
            dense: [batch, user dense], only when the model has dense user features.

        Returns:
            [batch, n].
        """
        return self.interactions(sparse, items, dense) + self.score_weight * candidate_scores

    def interactions(self, sparse: Tensor, items: Tensor, dense: Tensor | None = None) -> Tensor:
        """`forward` without the retrieval score."""
        user_fields = sparse.reshape(sparse.shape[0], -1, self.dim)  # [batch, user fields, dim]
        if self.bottom is not None:
            user_fields = torch.cat([user_fields, self.bottom(dense).unsqueeze(1)], dim=1)
        user = self.first_user(
            torch.cat([user_fields.flatten(1), pair_products(user_fields)], dim=1)
        )  # [batch, hidden]
        hidden = self.dropout(F.relu(user.unsqueeze(1) + items @ self._item_weight(user_fields)))
        scores: Tensor = self.top(hidden).squeeze(2)
        return scores

    def _item_weight(self, user_fields: Tensor) -> Tensor:
        """What the first layer multiplies each of a user's items by: [batch, item width, hidden].

        A product of an item's field and a user's field is linear in the item. So the layer's
        weights of those products, times the user's fields, are weights of the item's embeddings:
        made once per user, they leave one matrix product per candidate.
        """
        embedded = self.num_item_fields * self.dim
        width = self.first_item.in_features - self.num_item_fields * self.num_user_fields
        weight = self.first_item.weight.t()  # [item width + crosses, hidden]
        crosses = weight[width:].reshape(self.num_item_fields, self.num_user_fields, -1)
        of_user = user_fields.transpose(1, 2).unsqueeze(1) @ crosses
        of_user = of_user.flatten(1, 2) + weight[:embedded]  # [batch, embedded, hidden]
        rest = weight[embedded:width].expand(user_fields.shape[0], -1, -1)
        return torch.cat([of_user, rest], dim=1)


def pair_products(fields: Tensor) -> Tensor:
    """Dot products of all pairs of fields: [batch, fields, dim] -> [batch, pairs]."""
    products = (fields @ fields.transpose(1, 2)).flatten(1)
    n = fields.shape[1]
    # One gather: a product and a sum for each pair would be hundreds of nodes in the graph.
    upper = [i * n + j for i, j in combinations(range(n), 2)]
    return products[:, torch.tensor(upper, dtype=torch.int64)]


class DLRM(nn.Module):
    """Ranking model: `tables` and the bags are the sparse half, `ranker` the dense half."""

    def __init__(self, config: DLRMConfig) -> None:
        super().__init__()
        for name, shape in config.tables.items():
            if shape.dim != config.dim:
                raise InputError(
                    f"[dlrm] table {name!r}: expected dim {config.dim}, found {shape.dim}"
                )
        self.config = config
        self.user_bags = config.user_bags
        self.item_bags = config.item_bags
        self.tables = make_tables(config.tables)
        self.ranker = Ranker(config)

    def items(self, rows: Rows, dense: Tensor | None = None) -> Tensor:
        """All that the ranker reads of items: [items, item width].

        Pooled embeddings, dense features, and the dot products of the embeddings' pairs.
        """
        pooled = pool_bags(self.tables, self.item_bags, rows)
        known = [pooled] if dense is None else [pooled, dense]
        fields = pooled.reshape(len(pooled), len(self.item_bags), self.config.dim)
        return torch.cat([*known, pair_products(fields)], dim=1)

    def item_table(self, rows: Rows, dense: Tensor | None = None) -> Tensor:
        """`items` of the whole catalog behind row 0, the item that nothing is known of."""
        unknown = {name: torch.zeros_like(values[:1, -1:]) for name, values in rows.items()}
        nothing = None if dense is None else torch.zeros_like(dense[:1])
        return torch.cat([self.items(unknown, nothing), self.items(rows, dense)])

    def interactions(self, rows: Rows, items: Tensor, dense: Tensor | None = None) -> Tensor:
        """`forward` without the retrieval score: [batch, n]."""
        return self.ranker.interactions(pool_bags(self.tables, self.user_bags, rows), items, dense)

    def forward(
        self, rows: Rows, items: Tensor, candidate_scores: Tensor, dense: Tensor | None = None
    ) -> Tensor:
        """Scores [batch, n] of `items` [batch, n, width] for users given as table rows."""
        sparse = pool_bags(self.tables, self.user_bags, rows)
        scores: Tensor = self.ranker(sparse, items, candidate_scores, dense)
        return scores
