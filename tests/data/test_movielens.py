import pytest

from recengine.data import movielens
from recengine.errors import InputError


def test_without_a_registry_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(InputError, match=r"could not download recbole==1\.2\.1"):
        movielens.fetch(tmp_path)
    assert list(tmp_path.iterdir()) == []
