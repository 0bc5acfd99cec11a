"""Reference recommenders in PyTorch: a sparse half of tables and bags, a dense half of modules."""

from recengine.models.bags import Rows, TableShape
from recengine.models.dlrm import DLRM, DLRMConfig
from recengine.models.two_tower import TwoTower, TwoTowerConfig

__all__ = ["DLRM", "DLRMConfig", "Rows", "TableShape", "TwoTower", "TwoTowerConfig"]
