"""Data sets: MovieLens, RecBole atomic files, Parquet and CSV, all read into one `Dataset`."""

from recengine.data.build import Columns
from recengine.data.dataset import Dataset, FeatureTable, Interactions, Ragged
from recengine.data.read import detect_format, read
from recengine.data.split import Split, leave_last_out, splitter, time_ratio

__all__ = [
    "Columns",
    "Dataset",
    "FeatureTable",
    "Interactions",
    "Ragged",
    "Split",
    "detect_format",
    "leave_last_out",
    "read",
    "splitter",
    "time_ratio",
]
