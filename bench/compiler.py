"""Builds the C++ programs of the benches."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path


def compile_cpp(source: Path, target: Path, flags: Sequence[str]) -> Path:
    """Compiles `source` into `target` with $CXX or the system's compiler; C++17, optimised."""
    target.parent.mkdir(parents=True, exist_ok=True)
    compiler = os.environ.get("CXX") or shutil.which("c++") or "g++"
    command = [compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", *flags]
    subprocess.run([*command, str(source), "-o", str(target)], check=True)
    return target
