"""What training can be told; the defaults suit MovieLens-100K."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

MOST_KNN_ITEMS = 20_000
"""Of a catalog that item-kNN is measured on: it compares each item with each."""


class RetrievalConfig(BaseModel):
    """The two-tower model and how it is fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: PositiveInt = 64
    hidden: tuple[PositiveInt, ...] = (128,)
    dropout: float = Field(0.2, ge=0, lt=1)
    history_lengths: tuple[PositiveInt, ...] = (1, 5, 50)
    temperature: PositiveFloat = 0.1
    learning_rate: PositiveFloat = 4e-3
    decay: float = Field(0.85, gt=0, le=1, description="of the rate, per epoch")
    weight_decay: float = Field(1e-4, ge=0)
    batch_size: PositiveInt = 1024
    patience: PositiveInt = Field(2, description="epochs without a better one to stop after")
    unknown_user_rate: float = Field(0.8, ge=0, lt=1, description="user ids, on top of the rest")


class RankingConfig(BaseModel):
    """The DLRM model and how it is fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: PositiveInt = 32
    hidden: tuple[PositiveInt, ...] = (64, 32)
    dropout: float = Field(0.1, ge=0, lt=1)
    history_lengths: tuple[PositiveInt, ...] = (1, 5, 50)
    learning_rate: PositiveFloat = 1e-2
    decay: float = Field(0.75, gt=0, le=1, description="of the rate, per epoch")
    weight_decay: float = Field(
        0.2, ge=0, description="more keeps activations in a range that int8 can tell apart"
    )
    batch_size: PositiveInt = 512
    epochs: PositiveInt = Field(8, description="all are run, the last one is kept")
    unknown_user_rate: float = Field(0.8, ge=0, lt=1, description="user ids, on top of the rest")
    negatives: PositiveInt = 20
    hard_share: float = Field(
        0.9, ge=0, lt=1, description="of the negatives, drawn as the retrieval would offer them"
    )
    score_shares: tuple[float, ...] = Field(
        (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0),
        description="weights of cosine / temperature to choose from",
    )


class TrainingConfig(BaseModel):
    """Both models, and what they share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    max_epochs: PositiveInt = 30
    unknown_rate: float = Field(0.02, ge=0, lt=1, description="ids trained as out of vocabulary")
    num_candidates: PositiveInt = 100
    k: PositiveInt = 10
    retrieval: RetrievalConfig = RetrievalConfig()
    ranking: RankingConfig = RankingConfig()
