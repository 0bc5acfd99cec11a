from pathlib import Path

from bench import readme

ROOT = Path(__file__).parents[1]


def test_tables_of_the_readme_are_those_of_the_results():
    text = (ROOT / "README.md").read_text()
    assert readme.rewrite(text, ROOT / "bench" / "results") == text
