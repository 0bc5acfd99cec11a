"""Our declarations of Triton's C ABI beside the official headers, where these are.

Run it with RECENGINE_TRITON_INCLUDE_DIR=<include of triton-inference-server/core>.
"""

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "csrc"
API = SOURCES / "triton" / "api.h"


@pytest.fixture(scope="module")
def check():
    """Whether the compiler takes some code beside the official headers."""
    headers = os.environ.get("RECENGINE_TRITON_INCLUDE_DIR")
    if headers is None:
        pytest.skip("needs RECENGINE_TRITON_INCLUDE_DIR")
    json = Path(importlib.util.find_spec("nlohmann_json").origin).parent / "include"
    command = [
        *(os.environ.get("CXX", "c++"), "-std=c++17", "-fsyntax-only", "-Wall", "-Werror"),
        *(f"-I{SOURCES}", f"-I{SOURCES / 'include'}", "-isystem", json, "-isystem", headers),
        *("-DRECENGINE_OFFICIAL_TRITON_HEADERS", "-x", "c++", "-"),
    ]
    return lambda code: subprocess.run(command, input=code, text=True, check=True)


@pytest.mark.parametrize("source", sorted(path.name for path in API.parent.glob("*.cc")))
def test_the_backend_is_compiled_with_the_official_headers(check, source):
    check(f'#include "triton/{source}"\n')


def values(enum):
    """Name and value of each enumerator."""
    value = -1
    for name, given in re.findall(r"(\w+)(?: = (\w+))?", enum):
        value = int(given, 0) if given else value + 1
        yield name, value


def test_what_we_declare_is_what_the_official_headers_declare(check):
    ours = API.read_text().split("#else")[1].rsplit("#endif", 1)[0]
    enum, define = r"typedef enum \w+ \{(.*?)\} \w+;", r"#define (\w+) (\w+)"
    known = [pair for body in re.findall(enum, ours, re.DOTALL) for pair in values(body)]
    known += re.findall(define, ours)
    assert len(known) > 40
    # A second declaration of a function compiles where it is the same.
    functions = re.sub(define, "", re.sub(enum, "", ours, flags=re.DOTALL))
    same = [f'static_assert(int({name}) == {value}, "{name}");' for name, value in known]
    check("\n".join(['#include "triton/api.h"', functions, *same]))
