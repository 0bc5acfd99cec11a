"""What `pip install .` installs."""

import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Names and contents of the wheel's files; the build compiles nothing that it has compiled."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    if not any(ROOT.glob(f"build/{tag}-*/build.ninja")):
        pytest.skip("needs the build of make setup")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir"),
            *("wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation"),
            *("-w", folder, ROOT),
        ],
        check=True,
        timeout=250,
    )
    (path,) = folder.iterdir()
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_wheel_has_the_package_and_both_libraries_and_nothing_else(wheel):
    sources = {str(path.relative_to(ROOT)) for path in ROOT.glob("recengine/**/*.py")}
    native = f"recengine/_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    backend = "recengine/backends/recengine/libtriton_recengine.so"
    typed = {"recengine/py.typed", "recengine/_native.pyi"}
    installed = {name for name in wheel if ".dist-info/" not in name}
    assert installed == {*sources, *typed, native, backend}
    assert wheel[native].startswith(b"\x7fELF")
    assert wheel[backend].startswith(b"\x7fELF")


def test_a_wheel_needs_no_torch_unless_one_asks_for_training(wheel):
    (metadata,) = (text.decode() for name, text in wheel.items() if name.endswith("/METADATA"))
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    plain = {re.split(r"\W", line.split()[1])[0] for line in required if "extra ==" not in line}
    assert plain == {"numpy", "tritonclient"}
    assert any("torch" in line and "train" in line for line in required)
