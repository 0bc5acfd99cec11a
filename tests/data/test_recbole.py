import numpy as np
import pytest

from recengine.data import Columns, read
from recengine.errors import InputError
from recengine.keys import hash_key


def replace_line(path, line, text):
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines) + "\n")


def test_interactions_are_sorted_by_time_and_equal_times_keep_their_order(recbole):
    interactions = read(recbole).interactions
    assert interactions.users.tolist() == [1, 2, 1, 1]
    assert interactions.items.tolist() == [20, 10, 30, 10]
    assert interactions.times.tolist() == [10, 20, 20, 30]
    assert interactions.ratings.tolist() == [5, 4, 1, 3]


def test_integers_are_their_own_ids_and_strings_are_hashed(recbole):
    users = read(recbole).users
    assert users.ids.tolist() == [1, 2, 3, 4]
    assert [users.sparse["age"][i].tolist() for i in range(4)] == [[24], [24], [30], [30]]
    assert users.sparse["gender"][1].tolist() == [hash_key("F")]
    assert users.hashed == {"gender"}


def test_a_missing_number_is_nan_and_a_missing_list_is_empty(recbole):
    dataset = read(recbole)
    np.testing.assert_allclose(dataset.users.dense["height"], [1.8, np.nan, 1.7, 1.6], rtol=1e-6)
    genres = [hash_key("Comedy"), hash_key("Drama")]
    assert dataset.items.sparse["class"][0].tolist() == genres
    assert dataset.items.sparse["class"][2].tolist() == []


def test_a_column_of_distinct_cells_is_text_only(recbole):
    items = read(recbole).items
    assert "movie_title" not in items.sparse
    assert items.text["movie_title"][0] == "Toy Story"
    assert items.text["class"][0] == "Comedy Drama"


def test_string_item_ids_are_hashed_in_every_file(recbole):
    for name in ("tiny.inter", "tiny.item"):
        path = recbole / name
        path.write_text(path.read_text().replace("20\t", "B20\t"))
    dataset = read(recbole)
    assert dataset.hashed_items
    assert not dataset.hashed_users
    assert hash_key("B20") in dataset.items.ids
    assert dataset.items.ids.tolist() == [hash_key(key) for key in dataset.items.keys]
    assert set(dataset.items.keys) == {"10", "B20", "30", "40", "50", "60"}
    assert dataset.users.keys == []


def test_string_ids_that_only_the_interactions_name_are_kept(recbole):
    (recbole / "tiny.item").unlink()
    path = recbole / "tiny.inter"
    path.write_text(path.read_text().replace("20\t", "B20\t") + "ann\tB21\t3\t50\n")
    dataset = read(recbole)
    assert set(dataset.items.keys) == {"10", "B20", "30", "B21"}
    assert set(dataset.users.keys) == {"1", "2", "3", "4", "ann"}
    for table in (dataset.items, dataset.users):
        assert table.ids.tolist() == [hash_key(key) for key in table.keys]


def test_an_item_without_features_has_empty_lists(recbole):
    path = recbole / "tiny.inter"
    path.write_text(path.read_text() + "2\t99\t3\t50\n")
    items = read(recbole).items
    assert items.ids.tolist() == [10, 20, 30, 40, 50, 60, 99]
    assert items.sparse["class"][6].tolist() == []


@pytest.mark.parametrize(
    ("file", "line", "text", "message"),
    [
        ("tiny.inter", 3, "1\t20\t5", r"tiny\.inter:3: expected 4 cells, found '1\\t20\\t5'"),
        ("tiny.inter", 4, "", r"tiny\.inter:4: expected 4 cells, found ''"),
        ("tiny.inter", 2, "1\t10\tgood\t30", r"tiny\.inter:2: expected a number in rating, found"),
        ("tiny.inter", 2, "1\t10\tnan\t30", r"tiny\.inter:2: expected a number in rating, found"),
        ("tiny.inter", 5, "1\t10\t3\tlate", r"inter:5: expected an integer in timestamp, found"),
        ("tiny.inter", 5, "1\t-1\t3\t30", r"inter:5: expected a item_id that is not -1, found -1"),
        ("tiny.inter", 5, "\t10\t3\t30", r"tiny\.inter:5: expected an integer in user_id, found"),
        ("tiny.inter", 1, "user_id:token\titem_id\tr:float\tt:float", r"inter:1: expected name"),
        ("tiny.inter", 1, "u:token\titem_id:token\tr:float\tt:float", r"expected a column 'user"),
        ("tiny.user", 4, "1\t30\tM\t1.7", r"tiny\.user:4: expected each user_id once, found '1'"),
        ("tiny.user", 3, "2\t24\tF\ttall", r"tiny\.user:3: expected a number in height, found"),
    ],
)
def test_a_bad_row_is_refused_with_file_and_line(recbole, file, line, text, message):
    replace_line(recbole / file, line, text)
    with pytest.raises(InputError, match=message):
        read(recbole)


def add_column(path, cells):
    rows = zip(path.read_text().splitlines(), cells, strict=True)
    path.write_text("".join(f"{row}\t{cell}\n" for row, cell in rows))


def test_vectors_of_one_length_are_dense_features(recbole):
    vectors = ["emb:float_seq", "0.5 -1", "1 2", "", "3 4 ", "5 6", "7 8"]
    add_column(recbole / "tiny.item", vectors)
    dense = read(recbole).items.dense
    assert list(dense) == ["emb_0", "emb_1"]
    np.testing.assert_array_equal(dense["emb_0"], [0.5, 1, np.nan, 3, 5, 7])
    np.testing.assert_array_equal(dense["emb_1"], [-1, 2, np.nan, 4, 6, 8])


def test_vectors_of_other_lengths_are_left_out_with_a_warning(recbole):
    add_column(recbole / "tiny.item", ["emb:float_seq", "", "1 2", "1", "", "", ""])
    with pytest.warns(UserWarning, match=r"tiny\.item:4: expected 2 numbers in emb .* left out"):
        items = read(recbole).items
    assert items.dense == {}
    assert "class" in items.sparse


def test_a_vector_with_a_cell_that_is_no_number_is_refused(recbole):
    add_column(recbole / "tiny.item", ["emb:float_seq", "1 2", "1 x", "", "", "", ""])
    with pytest.raises(InputError, match=r"tiny\.item:3: expected a number in emb_1, found 'x'"):
        read(recbole)


def test_a_vector_whose_values_have_the_name_of_a_column_is_refused(recbole):
    add_column(recbole / "tiny.item", ["emb_0:float", *"123456"])
    add_column(recbole / "tiny.item", ["emb:float_seq", *"123456"])
    with pytest.raises(InputError, match="'emb': its values would be named 'emb_0'"):
        read(recbole)


def test_vectors_of_interactions_are_not_looked_at(recbole):
    add_column(recbole / "tiny.inter", ["gaze:float_seq", "1 2", "1", "", "x"])
    assert len(read(recbole).interactions) == 4


def test_columns_may_have_other_names(recbole):
    for name, old, new in (
        ("inter", "item_id:token\trating:float\ttimestamp", "artist_id:token\tweight:float\tat"),
        ("item", "item_id", "artist_id"),
    ):
        path = recbole / f"tiny.{name}"
        path.write_text(path.read_text().replace(old, new))
    dataset = read(recbole, columns=Columns(item="artist_id", time="at", rating="weight"))
    assert dataset.interactions.items.tolist() == [20, 10, 30, 10]
    assert dataset.interactions.ratings.tolist() == [5, 4, 1, 3]
    assert len(dataset.items.sparse["class"][0]) == 2


def test_a_data_set_without_times_is_read_in_order_of_its_rows(recbole):
    (recbole / "tiny.inter").write_text("user_id:token\titem_id:token\n1\t30\n1\t10\n")
    message = (
        r"tiny\.inter: expected a column 'timestamp', found .*; time=NAME names another, time= "
    )
    with pytest.raises(InputError, match=message):
        read(recbole)
    assert read(recbole, columns=Columns(time=None)).interactions.items.tolist() == [30, 10]


def test_a_data_set_in_parts_is_refused(recbole):
    for part in ("tiny.part1.inter", "tiny.part2.inter"):
        (recbole / part).write_text((recbole / "tiny.inter").read_text())
    (recbole / "tiny.inter").unlink()
    message = r"one \.inter file, found tiny\.part1\.inter, tiny\.part2\.inter; .* into one file"
    with pytest.raises(InputError, match=message):
        read(recbole)


@pytest.mark.parametrize("again", ["rating:float", "rating:token"])
def test_a_column_that_stands_twice_is_refused(recbole, again):
    add_column(recbole / "tiny.inter", [again, *"1234"])
    with pytest.raises(
        InputError, match=r"tiny\.inter:1: expected each column once, found 'rating"
    ):
        read(recbole)
