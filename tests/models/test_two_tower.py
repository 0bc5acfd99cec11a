import pytest
import torch

from recengine.bundle import Bag
from recengine.models import TableShape, TwoTower, TwoTowerConfig


def make(num_dense=0):
    torch.manual_seed(0)
    user = (
        Bag(feature="user_id", table="user", pooling="mean", max_length=1),
        Bag(feature="history", table="item", pooling="mean", max_length=3),
    )
    item = (Bag(feature="item_id", table="item", pooling="mean", max_length=1),)
    return TwoTower(
        TwoTowerConfig(
            user_bags=user,
            item_bags=item,
            tables={"user": TableShape(rows=4, dim=5), "item": TableShape(rows=6, dim=3)},
            num_user_dense=num_dense,
            num_item_dense=num_dense,
            hidden=(8,),
            dim=4,
        )
    ).eval()


@pytest.mark.parametrize("num_dense", [0, 2])
def test_vectors_have_unit_length(num_dense):
    model = make(num_dense)
    rows = {
        "user_id": torch.tensor([[1], [0]]),
        "history": torch.tensor([[-1, -1, -1], [-1, 2, 3]]),
    }
    dense = torch.randn(2, num_dense) if num_dense else None
    users = model.users(rows, dense)
    items = model.items({"item_id": torch.tensor([[1], [5]])}, dense)
    assert users.shape == items.shape == (2, 4)
    torch.testing.assert_close(torch.cat([users, items]).norm(dim=1), torch.ones(4))


def test_history_and_item_share_a_table():
    model = make()
    rows = {"user_id": torch.tensor([[1]]), "history": torch.tensor([[-1, -1, 2]])}
    before = model.users(rows)
    with torch.no_grad():
        model.tables["item"][2] += 1
    assert not torch.allclose(before, model.users(rows))
