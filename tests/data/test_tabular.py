import warnings
from datetime import datetime

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


@pytest.fixture(params=["parquet", "csv"])
def float_ids(request, tmp_path):
    """Writes interactions and users as pandas does that made floats of integer ids."""

    def write(ids, dtype=pl.Float64):
        who = pl.Series("who", ids, dtype)
        taken = pl.DataFrame([who, pl.Series("what", range(len(ids)))])
        users = pl.DataFrame([who, pl.Series("age", [0.5] * len(ids))])
        paths = [tmp_path / f"{name}.{request.param}" for name in ("taken", "users")]
        for table, path in zip((taken, users), paths, strict=True):
            getattr(table, f"write_{request.param}")(path)
        return paths

    return write


FLOATS = Columns(user="who", item="what", time=None)


@pytest.mark.parametrize("dtype", [pl.Float32, pl.Float64])
def test_whole_floats_are_integer_ids_and_no_feature(float_ids, dtype):
    taken, users = float_ids([7, 0, 12], dtype)
    dataset = read(taken, columns=FLOATS, users=users)
    assert dataset.interactions.users.tolist() == [7, 0, 12]
    assert dataset.users.ids.tolist() == [0, 7, 12]
    assert not dataset.hashed_users
    assert dataset.users.dense.keys() == {"age"}


def test_float_ids_and_integer_ids_of_another_table_are_the_same(float_ids, tmp_path):
    taken, _ = float_ids([7, 0, 12])
    users = tmp_path / "others.csv"
    users.write_text("who,city\n7,a\n0,b\n12,a\n")
    dataset = read(taken, columns=FLOATS, users=users)
    assert dataset.users.ids.tolist() == [0, 7, 12]
    assert dataset.users.text["city"] == ["b", "a", "a"]


def test_ids_with_a_fraction_are_refused(float_ids):
    taken, users = float_ids([1, 1.5, 2.25])
    message = r"taken\.\w+:(\d| row 2): expected .* in who, found '?1\."
    with pytest.raises(InputError, match=message):
        read(taken, columns=FLOATS, users=users)


@pytest.mark.parametrize(
    ("ids", "dtype", "bound"),
    [
        ([1, 1 << 24], pl.Float32, 1 << 24),
        ([1, 1 << 53], pl.Float64, 1 << 53),
        ([1, float("nan")], pl.Float64, 1 << 53),
        ([1, float("-inf")], pl.Float64, 1 << 53),
    ],
)
def test_floats_that_are_no_exact_integers_are_refused_as_ids(tmp_path, ids, dtype, bound):
    path = tmp_path / "taken.parquet"
    pl.DataFrame([pl.Series("who", ids, dtype), pl.Series("what", [1, 2])]).write_parquet(path)
    with pytest.raises(InputError, match=rf"row 2: expected a whole number below {bound} in who"):
        read(path, columns=FLOATS)


def test_float_ids_that_are_called_strings_are_those_of_the_integers(tmp_path):
    path = tmp_path / "taken.parquet"
    pl.DataFrame({"who": [1.0, 2.0], "what": [1, 2]}).write_parquet(path)
    dataset = read(path, columns=Columns("who", "what", None, strings=["who"]), users=path)
    assert set(dataset.users.ids) == {hash_key("1"), hash_key("2")}
    assert dataset.users.dense == {}


def test_a_null_among_float_ids_is_refused_with_its_row(tmp_path):
    path = tmp_path / "taken.parquet"
    pl.DataFrame({"who": [1.0, None], "what": [1, 2]}).write_parquet(path)
    with pytest.raises(InputError, match="row 2: expected an integer in who, found None"):
        read(path, columns=FLOATS)


@pytest.mark.parametrize("name", ["taken.csv", "taken.tsv"])
def test_an_empty_file_is_refused_by_name(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=rf"{name}:1: expected .* names, found an empty file"):
        read(tmp_path / name, columns=NAMES)


@pytest.mark.parametrize(
    ("times", "dtype"), [([2.5, 2.0, 1.75], pl.Float64), (["2.5", "2.0", "1.75"], pl.String)]
)
def test_of_times_whole_seconds_are_kept(tmp_path, times, dtype):
    path = tmp_path / "taken.parquet"
    TAKEN.with_columns(when=pl.Series(times, dtype=dtype)).write_parquet(path)
    interactions = read(path, columns=NAMES).interactions
    assert interactions.times.tolist() == [1, 2, 2]
    assert interactions.users.tolist() == [2, 1, 1]


@pytest.mark.parametrize(
    ("times", "dtype"), [([2.0**53, 1], pl.Float64), ([2.0**24, 1], pl.Float32)]
)
def test_times_that_a_float_does_not_hold_exactly_are_refused(tmp_path, times, dtype):
    path = tmp_path / "taken.parquet"
    when = pl.Series("when", times, dtype)
    pl.DataFrame([when, pl.Series("who", [1, 2]), pl.Series("what", [1, 2])]).write_parquet(path)
    with pytest.raises(InputError, match="row 1: expected an integer in when, found"):
        read(path, columns=NAMES)


@pytest.mark.parametrize(("stray", "warned"), [("n/a", True), ("", False), ("0.5", False)])
def test_a_few_cells_that_make_strings_of_a_column_are_warned_of(tmp_path, stray, warned):
    """Prices that are all distinct would be taken for a title, and be no feature at all."""
    taken, items = tmp_path / "taken.csv", tmp_path / "items.csv"
    taken.write_text("who,what,when\n1,1,1\n")
    rows = [f"{item},{item}.5,{'ab'[item % 2]}" for item in range(50)] + [f"50,{stray},a"]
    items.write_text("\n".join(["what,price,kind", *rows]) + "\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read(taken, columns=NAMES, items=items)
    said = [str(one.message) for one in caught]
    expected = f"{items}:52: expected a number in price as in most rows, found 'n/a'; "
    assert said == [expected + "all of the column are taken as strings"] * warned


def test_columns_of_interactions_that_nobody_names_may_be_of_any_type(tmp_path):
    path = tmp_path / "taken.parquet"
    other = {"seen": [True, False, None], "at": [datetime(2020, 1, 1)] * 3, "who": [1, 1, 2]}
    taken = TAKEN.drop("who").with_columns(pl.struct("what").alias("pair"))
    pl.concat([pl.DataFrame(other), taken], how="horizontal").write_parquet(path)
    assert read(path, columns=NAMES).interactions.users.tolist() == [1, 2, 1]
    with pytest.raises(InputError, match="column 'pair': expected integers, numbers, strings"):
        read(path, columns=Columns("pair", "what", "when"))


@pytest.mark.parametrize(
    "dtype", [pl.Date, pl.Datetime("ms"), pl.Datetime("ns"), pl.Datetime("us", "Asia/Tokyo")]
)
def test_dates_become_seconds_since_1970(tmp_path, dtype):
    path = tmp_path / "taken.parquet"
    when = pl.Series("when", [86400 * 2, 86400, None], pl.Int64) * 1000
    when = when.cast(pl.Datetime("ms")).cast(dtype)
    TAKEN.with_columns(when).head(2).write_parquet(path)
    interactions = read(path, columns=NAMES).interactions
    assert interactions.times.tolist() == [86400, 172800]
    assert interactions.users.tolist() == [1, 1]
    TAKEN.with_columns(when).write_parquet(path)
    with pytest.raises(InputError, match="row 3: expected an integer in when, found None"):
        read(path, columns=NAMES)
