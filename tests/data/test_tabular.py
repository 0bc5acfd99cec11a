import numpy as np
import polars as pl
import pytest

from recengine.data import Columns, read
from recengine.errors import InputError
from recengine.keys import hash_key

NAMES = Columns(user="who", item="what", time="when")
TAKEN = pl.DataFrame({"who": [1, 1, 2], "what": ["a", "b", "a"], "when": [3, 1, 2]})
ITEMS = pl.DataFrame(
    {
        "what": list("abcdef"),
        "tags": [["x", "y"], ["x"], ["x"], None, ["x"], ["x"]],
        "price": [1.5] * 6,
    }
)


@pytest.fixture(params=["parquet", "csv"])
def files(request, tmp_path):
    taken, items = tmp_path / f"taken.{request.param}", tmp_path / f"items.{request.param}"
    if request.param == "parquet":
        TAKEN.write_parquet(taken)
        ITEMS.write_parquet(items)
    else:
        TAKEN.write_csv(taken)
        ITEMS.with_columns(pl.col("tags").list.join("|")).write_csv(items)
    return taken, items


def test_named_columns_are_read(files):
    dataset = read(files[0], columns=NAMES, items=files[1])
    assert dataset.interactions.users.tolist() == [1, 2, 1]
    assert dataset.interactions.items.tolist() == [hash_key(key) for key in "baa"]
    assert dataset.interactions.ratings is None
    rows = dataset.items.find(np.array([hash_key(key) for key in "abcdef"]))
    assert [len(dataset.items.sparse["tags"][row]) for row in rows] == [2, 1, 1, 0, 1, 1]
    assert dataset.items.dense["price"].tolist() == [1.5] * 6


def test_a_column_that_is_not_there_is_refused(files):
    with pytest.raises(InputError, match=r"expected a column 'user_id', found who, what, when"):
        read(files[0])


def test_a_missing_value_is_refused_with_its_row(tmp_path):
    path = tmp_path / "taken.parquet"
    TAKEN.with_columns(when=pl.Series([3, None, 2])).write_parquet(path)
    with pytest.raises(InputError, match=r"parquet: row 2: expected an integer in when, found No"):
        read(path, columns=NAMES)


def test_a_quoted_comma_stays_in_its_cell(tmp_path):
    path = tmp_path / "taken.csv"
    path.write_text('who,what,when\n1,"a,b",3\n2,c,x\n')
    with pytest.raises(InputError, match=r"taken\.csv:3: expected an integer in when, found 'x'"):
        read(path, columns=NAMES)
    path.write_text('who,what,when\n1,"a,b",3\n')
    assert read(path, columns=NAMES).interactions.items.tolist() == [hash_key("a,b")]


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "taken.parquet").write_text("no")
    with pytest.raises(InputError, match=r"taken\.parquet: not Parquet"):
        read(tmp_path / "taken.parquet", columns=NAMES)


@pytest.mark.parametrize("dtype", [pl.List(pl.Float32), pl.Array(pl.Float64, 2)])
def test_lists_of_fractions_are_vectors(tmp_path, dtype):
    taken, items = tmp_path / "taken.parquet", tmp_path / "items.parquet"
    TAKEN.write_parquet(taken)
    vectors = pl.Series([[0.5, 1], [1.5, 2], None], dtype=dtype)
    pl.DataFrame({"what": list("abc"), "emb": vectors}).write_parquet(items)
    table = read(taken, columns=NAMES, items=items).items
    assert list(table.dense) == ["emb_0", "emb_1"]
    rows = table.find(np.array([hash_key(key) for key in "abc"]))
    np.testing.assert_array_equal(table.dense["emb_0"][rows], [0.5, 1.5, np.nan])
