"""Who may import whom, as the layout draws it."""

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PACKAGE = Path(__file__).parents[1] / "recengine"
SERVING_SIDE = ("serving", "client", "compile", "engine", "ops", "_ops")
TRAINING_SIDE = (
    "recengine.training",
    "recengine.models",
    "recengine.export",
    "recengine.data",
    "torch",
    "lightning",
)


def imported(path):
    """Every module that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(path):
    """First name below the package: recengine/client/wire.py -> client."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def offenders(files, modules):
    return [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in files
        for name in imported(path)
        if any(name == module or name.startswith(f"{module}.") for module in modules)
    ]


FILES = sorted(PACKAGE.rglob("*.py"))


def files_of(*parts):
    return [path for path in FILES if part(path) in parts]


def test_serving_never_imports_training_models_or_torch():
    assert offenders(files_of(*SERVING_SIDE), TRAINING_SIDE) == []


def test_only_ops_imports_the_native_module():
    files = [path for path in FILES if path != PACKAGE / "_ops.py"]
    assert offenders(files, ["recengine._native"]) == []


@pytest.mark.parametrize(
    ("name", "above"),
    [
        ("bundle", ("cli", "serving", "compile", "export", "training", "models", "data", "engine")),
        ("data", ("cli", "serving", "compile", "export", "training", "models", "engine", "client")),
        ("models", ("cli", "serving", "compile", "export", "training", "engine", "client")),
        ("training", ("cli", "serving", "compile", "export", "engine")),
        ("export", ("cli", "serving", "compile")),
        ("compile", ("cli", "serving", "export")),
        ("client", ("cli", "serving", "compile", "export", "engine", "bundle")),
        ("engine", ("cli", "serving", "compile", "export", "bundle")),
        ("serving", ("cli", "export")),
    ],
)
def test_imports_go_one_way(name, above):
    assert offenders(files_of(name), [f"recengine.{module}" for module in above]) == []


CLIENT_ALONE = """
import sys

# NumPy, tritonclient[grpc] and what that depends on.
allowed = {"recengine", "numpy", "tritonclient", "grpc", "google", "typing_extensions",
           "ml_dtypes", "packaging", "rapidjson", "urllib3"}

class Fence:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root not in allowed and root not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"fenced: {name}", name=name)

sys.meta_path.insert(0, Fence())
import recengine.client, recengine.client.aio
recengine.client.RecommenderClient("127.0.0.1:1").close()
print(sorted({name.partition(".")[0] for name in sys.modules} & {"pydantic", "torch", "openvino"}))
ours = [name for name in sys.modules if name.startswith("recengine.")]
print(sorted(name for name in ours if "client" not in name))
"""


def test_the_client_needs_only_numpy_and_tritonclient():
    run = subprocess.run(
        [sys.executable, "-c", CLIENT_ALONE],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["[]", "['recengine.errors', 'recengine.keys']"]


def test_packing_for_the_engine_does_not_load_grpc():
    code = "import sys, recengine.client; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0


@pytest.fixture
def plain(tmp_path):
    """What `pip install .` alone gives, away from the packages of this environment."""
    shutil.copytree(PACKAGE, tmp_path / "recengine")
    native = importlib.util.find_spec("recengine._native").origin
    shutil.copy(native, tmp_path / "recengine")

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-S", *arguments],
            cwd=tmp_path,
            env={"PYTHONPATH": f"{tmp_path}:{tmp_path / 'site'}"},
            capture_output=True,
            text=True,
            timeout=60,
        )

    (tmp_path / "site").mkdir()
    for package in ("numpy", "numpy.libs"):
        (tmp_path / "site" / package).symlink_to(Path(np.__file__).parents[1] / package)
    return run


def test_without_openvino_the_native_module_says_what_to_install(plain):
    done = plain("-c", "import recengine.ops")
    assert re.search(
        r"^ModuleNotFoundError: the native module needs openvino: pip install "
        r"'recengine\[serve\]' \(libopenvino",
        done.stderr,
        re.MULTILINE,
    ), done.stderr


def test_without_typer_the_command_line_says_what_to_install(plain):
    done = plain("-m", "recengine", "--help")
    assert done.returncode == 1
    assert done.stderr == ("error: the command line needs typer: pip install 'recengine[serve]'\n")
