import pytest

from recengine.data import Columns, detect_format, read
from recengine.errors import InputError


@pytest.mark.parametrize(
    ("fixture", "format"),
    [
        ("recbole", "recbole"),
        ("u_data", "u.data"),
        ("ratings_dat", "ratings.dat"),
        ("ratings_csv", "ratings.csv"),
    ],
)
def test_the_format_is_seen_from_the_file_names(fixture, format, request):
    folder = request.getfixturevalue(fixture)
    assert detect_format(folder) == format
    source = read(folder).source
    assert source["format"] == format
    assert len(source["sha256"]) == 64


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file or directory"):
        read(tmp_path / "nothing")


def test_a_folder_without_data_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected a folder with \*\.inter"):
        read(tmp_path)


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(InputError, match="format: expected recbole"):
        read(tmp_path, "excel")


@pytest.mark.parametrize(
    ("fixture", "argument"),
    [
        ("recbole", {"users": "users.csv"}),
        ("recbole", {"items": "items.csv"}),
        ("u_data", {"columns": Columns(item="film")}),
        ("ratings_dat", {"items": "items.csv"}),
        ("ratings_csv", {"users": "users.csv"}),
    ],
)
def test_an_argument_that_a_format_does_not_take_is_refused_by_name(fixture, argument, request):
    folder = request.getfixturevalue(fixture)
    message = rf"\[read\] {next(iter(argument))}: {detect_format(folder)} takes none, found"
    with pytest.raises(InputError, match=message):
        read(folder, **argument)
