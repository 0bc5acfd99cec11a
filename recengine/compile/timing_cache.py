"""What TensorRT measured of its kernels, kept between builds: the next one is faster by it."""

from __future__ import annotations

import hashlib
import re
import warnings
from pathlib import Path

from recengine._files import replace_file
from recengine.gpu import Gpu

_DIGEST_BYTES = hashlib.sha256().digest_size


def timing_cache_path(bundle: Path, tensorrt: str, gpu: Gpu) -> Path:
    """The file beside a bundle for one TensorRT and one kind of GPU: a cache serves no other."""
    device = re.sub(r"\W+", "-", gpu.name)
    whole = bundle.resolve()
    return whole.with_name(f"{whole.name}.{tensorrt}.{device}.timing")


def read_timing_cache(path: Path) -> bytes:
    """What was stored; empty where nothing is, or where a warning says that it is damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return b""
    digest, cache = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(cache).digest() != digest:
        warnings.warn(f"[tensorrt] {path}: damaged; starting a new timing cache", stacklevel=2)
        return b""
    return cache


def write_timing_cache(path: Path, cache: bytes) -> None:
    """Replaces the file in one step; where that cannot be, a warning says so."""
    try:
        replace_file(path, hashlib.sha256(cache).digest() + cache)
    except OSError as error:  # the plan is built all the same
        warnings.warn(f"[tensorrt] timings are not kept: {error}", stacklevel=2)
