import pytest

from recengine.data import read
from recengine.errors import InputError
from recengine.keys import hash_key


@pytest.mark.parametrize("folder", ["u_data", "ratings_dat", "ratings_csv"])
def test_every_folder_format_tells_the_same(folder, request):
    dataset = read(request.getfixturevalue(folder))
    assert dataset.interactions.users.tolist() == [1, 2, 1]
    assert dataset.interactions.items.tolist() == [20, 10, 10]
    assert dataset.interactions.ratings.tolist() == [5, 4, 3]
    assert dataset.items.text["title"][:2] == ["Misérables, Les (1995)", "Heat (1995)"]
    genres = [hash_key("Comedy"), hash_key("Drama")]
    assert sorted(dataset.items.sparse["genres"][0].tolist()) == sorted(genres)
    assert dataset.items.sparse["release_year"][0].tolist() == [1995]


def test_zip_codes_are_text_and_ages_are_ids(u_data):
    users = read(u_data).users
    assert users.text["zip_code"] == ["85711", "94043"]
    assert users.sparse["age"].values.tolist() == [24, 24]


def test_a_film_without_genres_has_none(ratings_csv):
    items = read(ratings_csv).items
    assert items.text["genres"] == ["Comedy|Drama", "Drama", ""]


def test_a_string_where_the_format_has_integers_is_refused(u_data):
    (u_data / "u.data").write_text("1\t10\t3\t30\nx\t20\t5\t10\n")
    with pytest.raises(InputError, match=r"u\.data:2: expected an integer in user_id, found 'x'"):
        read(u_data)


def test_a_line_short_of_cells_is_refused(ratings_dat):
    (ratings_dat / "ratings.dat").write_text("1::10::3::30\n1::20::5\n")
    with pytest.raises(InputError, match=r"ratings\.dat:2: expected 4 cells, found '1::20::5'"):
        read(ratings_dat)


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ("1.9\t2\t3\t10", "user_id"),
        ("1\t2.7\t3\t10", "item_id"),
        ("1\t1e17\t3\t10", "item_id"),
    ],
)
def test_ids_that_are_no_whole_numbers_are_refused(u_data, row, column):
    (u_data / "u.data").write_text(f"1.0\t10.0\t3\t30.0\n{row}\n")
    with pytest.raises(InputError, match=rf"u\.data:2: expected an integer in {column}, found"):
        read(u_data)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("u_data", "u.data"),
        ("u_data", "u.user"),
        ("ratings_dat", "ratings.dat"),
        ("ratings_csv", "ratings.csv"),
        ("ratings_csv", "movies.csv"),
    ],
)
def test_an_empty_file_is_refused_by_name(folder, name, request):
    directory = request.getfixturevalue(folder)
    (directory / name).write_text("")
    with pytest.raises(InputError, match=rf"{name}:1: expected .*, found an empty file"):
        read(directory)


@pytest.mark.parametrize("flag", ["2", "", "x"])
def test_a_genre_flag_that_is_neither_0_nor_1_is_refused(u_data, flag):
    path = u_data / "u.item"
    path.write_bytes(path.read_bytes().removesuffix(b"0") + flag.encode())
    with pytest.raises(
        InputError, match=rf"u\.item:2: expected 0 or 1 for Western, found '{flag}'"
    ):
        read(u_data)
