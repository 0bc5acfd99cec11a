"""Small data sets on disk, one per format, all telling the same."""

import pytest


@pytest.fixture
def recbole(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "tiny.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "1\t10\t3\t30\n1\t20\t5\t10\n2\t10\t4\t20\n1\t30\t1\t20\n"
    )
    (folder / "tiny.user").write_text(
        "user_id:token\tage:token\tgender:token\theight:float\n"
        "1\t24\tM\t1.8\n2\t24\tF\t\n3\t30\tM\t1.7\n4\t30\tF\t1.6\n"
    )
    (folder / "tiny.item").write_text(
        "item_id:token\tmovie_title:token_seq\tclass:token_seq\n"
        "10\tToy Story\tComedy Drama\n20\tHeat\tDrama\n30\tAntz\t\n40\tNobody saw this\tDrama\n"
        "50\tFargo\tDrama\n60\tGattaca\tDrama\n"
    )
    return folder


@pytest.fixture
def u_data(tmp_path):
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    (folder / "u.data").write_text("1\t10\t3\t30\n1\t20\t5\t10\n2\t10\t4\t20\n")
    (folder / "u.user").write_text("1|24|M|writer|85711\n2|24|F|other|94043\n")
    comedy, drama = (["0"] * 19 for _ in range(2))
    comedy[5] = drama[8] = comedy[8] = "1"
    (folder / "u.item").write_bytes(
        "\n".join(
            [
                "|".join(["10", "Misérables, Les (1995)", "01-Jan-1995", "", "http://a", *comedy]),
                "|".join(["20", "Heat (1995)", "15-Dec-1995", "", "http://b", *drama]),
            ]
        ).encode("latin-1")
    )
    return folder


@pytest.fixture
def ratings_dat(tmp_path):
    folder = tmp_path / "ml-1m"
    folder.mkdir()
    (folder / "ratings.dat").write_text("1::10::3::30\n1::20::5::10\n2::10::4::20\n")
    (folder / "users.dat").write_text("1::M::24::1::85711\n2::F::24::2::94043\n")
    (folder / "movies.dat").write_text(
        "10::Misérables, Les (1995)::Comedy|Drama\n20::Heat (1995)::Drama\n", encoding="utf-8"
    )
    return folder


@pytest.fixture
def ratings_csv(tmp_path):
    folder = tmp_path / "ml-latest"
    folder.mkdir()
    (folder / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n1,10,3.0,30\n1,20,5.0,10\n2,10,4.0,20\n"
    )
    (folder / "movies.csv").write_text(
        'movieId,title,genres\n10,"Misérables, Les (1995)",Comedy|Drama\n20,Heat (1995),Drama\n'
        "30,Untitled,(no genres listed)\n",
        encoding="utf-8",
    )
    return folder
