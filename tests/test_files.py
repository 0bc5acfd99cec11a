import threading

import pytest

from recengine._files import publish_directory


@pytest.fixture
def publish(tmp_path):
    """Publishes a directory that holds one nested file with this text."""

    def run(text):
        staging = tmp_path / "staging"
        (staging / "nested").mkdir(parents=True)
        (staging / "nested" / "file").write_text(text)
        publish_directory(staging, tmp_path / "published")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["published"]
        return tmp_path / "published" / "nested" / "file"

    return run


def test_a_directory_is_published_where_there_is_none(publish):
    assert publish("first").read_text() == "first"


def test_a_file_that_stands_there_is_not_replaced(publish, tmp_path):
    (tmp_path / "published").write_text("precious")
    with pytest.raises(NotADirectoryError, match="published"):
        publish("new")
    assert (tmp_path / "published").read_text() == "precious"


def test_a_directory_that_is_replaced_is_there_at_all_times(publish):
    file = publish("old")
    published = file.parent.parent
    missing = []
    done = threading.Event()

    def watch():
        while not done.is_set():
            if not published.exists():
                missing.append(published)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(100):
        publish(str(number))
    done.set()
    watcher.join()
    assert not missing
    assert file.read_text() == "99"
