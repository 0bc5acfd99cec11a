from pathlib import Path

import pytest

from bench import readme

ROOT = Path(__file__).parents[1]
PARTS = readme.parts(ROOT / "bench" / "results")


@pytest.mark.parametrize("page", PARTS, ids=str)
def test_tables_are_those_of_the_results(page):
    text = (ROOT / page).read_text()
    assert readme.rewrite(page, text, PARTS[page]) == text


def test_a_page_without_its_marker_is_told():
    with pytest.raises(SystemExit, match=r"README\.md: expected one part marked bars, found 0"):
        readme.rewrite(Path("README.md"), "# README", {"bars": ""})
