from itertools import combinations

import pytest
import torch

from recengine.bundle import Bag
from recengine.errors import InputError
from recengine.models import DLRM, DLRMConfig, TableShape

BATCH, CANDIDATES, DIM = 3, 5, 4


def make(num_user_dense=0, num_item_dense=0, hidden=(8, 6)):
    torch.manual_seed(0)
    return DLRM(
        DLRMConfig(
            user_bags=(
                Bag(feature="user_id", table="user", pooling="mean", max_length=1),
                Bag(feature="history", table="item", pooling="mean", max_length=3),
                Bag(feature="history", table="item", pooling="mean", max_length=1),
            ),
            item_bags=(
                Bag(feature="item_id", table="item", pooling="mean", max_length=1),
                Bag(feature="tags", table="tag", pooling="mean", max_length=2),
            ),
            tables={
                "user": TableShape(rows=4, dim=DIM),
                "item": TableShape(rows=9, dim=DIM),
                "tag": TableShape(rows=3, dim=DIM),
            },
            num_user_dense=num_user_dense,
            num_item_dense=num_item_dense,
            dim=DIM,
            hidden=hidden,
        )
    ).eval()


def naive(ranker, sparse, items, scores, dense):
    """DLRM as it is written down: everything of one user and one candidate in one long vector."""
    answer = torch.empty(items.shape[:2])
    for b in range(items.shape[0]):
        users = list(sparse[b].split(DIM))
        if dense is not None:
            users.append(ranker.bottom(dense[b : b + 1])[0])
        for n in range(items.shape[1]):
            fields = list(items[b, n, : 2 * DIM].split(DIM))
            pairs = [x @ y for x, y in combinations(users, 2)]
            crosses = [item @ user for item in fields for user in users]
            user_part = torch.cat([*users, torch.stack(pairs)])
            item_part = torch.cat([items[b, n], torch.stack(crosses)])
            weight = torch.cat([ranker.first_user.weight, ranker.first_item.weight], dim=1)
            first = weight @ torch.cat([user_part, item_part]) + ranker.first_user.bias
            answer[b, n] = ranker.top(first.relu())[0] + ranker.score_weight * scores[b, n]
    return answer


@pytest.mark.parametrize("hidden", [(8,), (8, 6)])
@pytest.mark.parametrize(("user_dense", "item_dense"), [(0, 0), (2, 0), (2, 3)])
def test_user_once_equals_the_whole_vector_per_candidate(user_dense, item_dense, hidden):
    model = make(user_dense, item_dense, hidden)
    model.ranker.score_weight.fill_(0.7)
    sparse = torch.randn(BATCH, 3 * DIM)
    items = torch.randn(BATCH, CANDIDATES, 2 * DIM + item_dense + 1)  # and the one pair
    scores = torch.randn(BATCH, CANDIDATES)
    dense = torch.randn(BATCH, user_dense) if user_dense else None
    found = model.ranker(sparse, items, scores, dense)
    torch.testing.assert_close(found, naive(model.ranker, sparse, items, scores, dense))


def test_item_table_is_one_row_per_item_behind_the_unknown_one():
    model = make(num_item_dense=1)
    rows = {"item_id": torch.tensor([[1], [2]]), "tags": torch.tensor([[-1, -1], [1, 2]])}
    table = model.item_table(rows, torch.tensor([[3.0], [4.0]]))
    tables = model.tables
    unknown = torch.cat([tables["item"][0], tables["tag"][0], torch.zeros(1)])
    second = torch.cat([tables["item"][2], tables["tag"][1:].mean(0), torch.tensor([4.0])])
    assert table.shape == (3, 2 * DIM + 2)
    torch.testing.assert_close(table[0, :-1], unknown)
    torch.testing.assert_close(table[2, :-1], second)
    torch.testing.assert_close(table[1, DIM : 2 * DIM], torch.zeros(DIM))


def test_item_rows_end_with_the_products_of_the_pairs_of_their_embeddings():
    model = make(num_item_dense=1)
    rows = {"item_id": torch.tensor([[1]]), "tags": torch.tensor([[1, 2]])}
    item = model.items(rows, torch.tensor([[3.0]]))[0]
    torch.testing.assert_close(item[-1], item[:DIM] @ item[DIM : 2 * DIM])


def test_a_table_of_another_dim_is_refused():
    config = make().config
    tables = {**config.tables, "tag": TableShape(rows=3, dim=7)}
    with pytest.raises(InputError, match="table 'tag': expected dim 4, found 7"):
        DLRM(config.model_copy(update={"tables": tables}))
