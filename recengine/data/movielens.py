"""Fetches MovieLens-100K from the package registry, where a wheel carries it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from recengine.errors import InputError

_PACKAGE = "recbole==1.2.1"
_FOLDER = "recbole/dataset_example/ml-100k"
_SHA256 = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
}


def fetch(directory: Path | str) -> Path:
    """Puts MovieLens-100K into `directory` as RecBole atomic files; nothing to do if it is there.

    The data is GroupLens' and may be used for research; it is not ours to pass on.

    Returns:
        The directory, which `recengine.data.read` reads.

    Raises:
        InputError: the wheel could not be downloaded, or holds other files than expected.
    """
    directory = Path(directory)
    if all(_intact(directory / name) for name in _SHA256):
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        wheel = _download(Path(temporary))
        for name in _SHA256:
            unpacked = Path(temporary) / name
            unpacked.write_bytes(_member(wheel, name))
            if not _intact(unpacked):
                raise InputError(f"{_PACKAGE}: {name} is not the file that was expected")
            unpacked.replace(directory / name)
    return directory


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--dest", str(folder), _PACKAGE], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no wheel was found"])[-1]
        raise InputError(
            f"[movielens] could not download {_PACKAGE}; is the package registry reachable? {last}"
        )
    return wheels[0]


def _member(wheel: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(f"{_FOLDER}/{name}")
    except KeyError:
        raise InputError(f"{_PACKAGE}: expected {_FOLDER}/{name} in the wheel") from None


def _intact(path: Path) -> bool:
    return path.is_file() and (hashlib.sha256(path.read_bytes()).hexdigest() == _SHA256[path.name])


if __name__ == "__main__":
    fetch(sys.argv[1])
