from dataclasses import replace

import numpy as np
import pytest

from recengine.data import Columns, read
from recengine.errors import InputError
from recengine.keys import hash_key

NAMES = Columns(user="who", item="what", time="when")


def write(path, rows, header="who,what,when"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def taken(strays, count=200):
    """So many interactions of one item each; item ids are integers, then the strays."""
    items = [*range(count - len(strays)), *strays]
    return [f"1,{item},{time}" for time, item in enumerate(items)]


@pytest.mark.parametrize("stray", ["1 ", " 1", "99999999999999999999", "x"])
def test_one_id_that_is_no_integer_among_integers_is_refused(tmp_path, stray):
    path = write(tmp_path / "taken.csv", taken([stray]))
    message = rf"taken\.csv:201: expected an integer in what as in 199 of 200 ids .*'{stray}'"
    with pytest.raises(InputError, match=message):
        read(path, columns=NAMES)


@pytest.mark.parametrize("strays", [["1.0"], ["1.5", "2.5", "3.5"], ["1e3", "nan"]])
def test_numbers_with_a_point_among_integer_ids_are_refused(tmp_path, strays):
    """Of many, too: as strings, 1.0 and 1 would be two ids."""
    path = write(tmp_path / "taken.csv", taken(strays))
    message = rf"taken\.csv:{202 - len(strays)}: expected an integer .* in what, .*'{strays[0]}'"
    with pytest.raises(InputError, match=message):
        read(path, columns=NAMES)
    strings = replace(NAMES, strings=["what"])
    assert hash_key(strays[0]) in read(path, columns=strings).items.ids


def test_a_stray_id_of_a_small_table_is_seen_beside_the_interactions(tmp_path):
    path = write(tmp_path / "taken.csv", taken([]))
    items = write(tmp_path / "items.csv", ["1,a", "2 ,a", "3,b"], "what,tag")
    with pytest.raises(InputError, match=r"items\.csv:3: .* as in 202 of 203 ids .*'2 '"):
        read(path, columns=NAMES, items=items)


def test_a_feature_may_mix_integers_and_strings(tmp_path):
    """As the release year of one film of MovieLens-100K."""
    path = write(tmp_path / "taken.csv", taken([]))
    rows = [f"{item},{item % 7}" for item in range(199)]
    items = write(tmp_path / "items.csv", [*rows, "199,unknown"], "what,year")
    message = r"items\.csv:201: expected a number in year as in most rows, found 'unknown'; all of"
    with pytest.warns(UserWarning, match=message):
        assert read(path, columns=NAMES, items=items).items.hashed == {"year"}


def test_ids_of_which_some_are_strings_are_hashed(tmp_path):
    path = write(tmp_path / "taken.csv", taken(["x1", "x2", "x3"]))
    dataset = read(path, columns=NAMES)
    assert dataset.hashed_items
    assert {hash_key("x2"), hash_key("7")} <= set(dataset.items.ids)


def test_strings_that_look_like_integers_are_hashed_where_the_caller_says_so(tmp_path):
    path = write(tmp_path / "taken.csv", taken(["1 "]))
    dataset = read(path, columns=replace(NAMES, strings=["what"]))
    assert (dataset.hashed_items, dataset.hashed_users) == (True, False)
    assert {hash_key("1 "), hash_key("1")} <= set(dataset.items.ids)
    unknown = replace(NAMES, strings=["waht"])
    with pytest.raises(
        InputError, match="strings: expected names among 'who' and 'what', found 'waht'"
    ):
        read(path, columns=unknown)


def test_a_column_name_that_stands_twice_is_refused(tmp_path):
    path = write(tmp_path / "taken.csv", ["1,2,3,4"], "who,what,when,what")
    with pytest.raises(InputError, match=r"csv:1: expected each column once, found 'what' again"):
        read(path, columns=NAMES)


def test_a_byte_order_mark_is_not_part_of_the_first_name(tmp_path):
    path = tmp_path / "taken.csv"
    path.write_text("who,what,when\n1,2,3\n", encoding="utf-8-sig")
    assert read(path, columns=NAMES).interactions.users.tolist() == [1]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_only_newlines_end_a_line_of_latin_1(u_data, newline):
    path = u_data / "u.item"
    text = path.read_bytes().replace(b"Heat", b"He\x85at\x0b").replace(b"\n", newline)
    path.write_bytes(text.removesuffix(b"0") + b"1" + newline)
    items = read(u_data).items
    assert items.text["title"] == ["Misérables, Les (1995)", "He\x85at\x0b (1995)"]
    assert items.sparse["genres"][1].tolist() == [hash_key("Drama"), hash_key("Western")]


def test_without_a_time_rows_stand_oldest_first(tmp_path):
    path = write(tmp_path / "taken.csv", ["1,30,9", "1,10,5", "2,20,7"])
    interactions = read(path, columns=Columns(user="who", item="what", time=None)).interactions
    assert interactions.items.tolist() == [30, 10, 20]
    assert np.all(np.diff(interactions.times) > 0)
