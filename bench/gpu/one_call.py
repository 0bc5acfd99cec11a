"""One call of an op between cuProfilerStart and cuProfilerStop: `ncu --profile-from-start off`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np

from bench.ops.embedding_bag import Case, Tables, make_ids, make_rows, our_tables
from recengine import ops
from recengine._cuda_driver import Driver

Call = Callable[[], object]


def embedding_bag(rows: int) -> Call:
    """8 tables of 512-byte rows, 1024 × 20 uniform ids."""
    case = Case(Tables(8, rows, 128, "fp32"), 1024, 20)
    rng = np.random.default_rng(0)
    stored = make_rows(case.tables, rng)
    tables = [ops.DeviceTable(table) for table in our_tables(case.tables, stored)]
    ids = ops.to_device(make_ids(case, False, 1, rng)[0].reshape(-1))
    lengths = ops.to_device(np.full((case.batch, case.tables.count), case.length, np.int32))
    return lambda: ops.embedding_bag(tables, ids, lengths, pooling="sum", check=False)


def cosine_topk(rows: int, batch: int = 32) -> Call:
    """The 100 best of items with 128 dimensions: each item is read once."""
    rng = np.random.default_rng(0)
    index = ops.DeviceItemIndex(rng.standard_normal((rows, 128), dtype=np.float32))
    queries = ops.to_device(rng.standard_normal((batch, 128), dtype=np.float32))
    return lambda: ops.cosine_topk(index, queries, 100, check=False)


def cosine_topk_1024(rows: int) -> Call:
    """The same for 1024 queries, by the tensor cores' rate."""
    return cosine_topk(rows, 1024)


CALLS: dict[str, tuple[Callable[[int], Call], int]] = {
    "embedding_bag": (embedding_bag, 1_000_000),
    "cosine_topk": (cosine_topk, 10_000_000),
    "cosine_topk_1024": (cosine_topk_1024, 10_000_000),
}
"""Every op, and the rows that it is profiled with."""


@contextmanager
def profiled() -> Iterator[None]:
    """What is put on the GPU inside the block is what a profiler sees."""
    driver = Driver()
    driver.use_primary_context()
    driver.call("cuCtxSynchronize")
    driver.call("cuProfilerStart")
    yield
    driver.call("cuCtxSynchronize")
    driver.call("cuProfilerStop")


def run(op: str, rows: int | None, profiler: Callable[[], AbstractContextManager[None]]) -> None:
    """The second call, under a profiler."""
    make, default_rows = CALLS[op]
    call = make(default_rows if rows is None else rows)
    call()
    with profiler():
        call()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("op", choices=list(CALLS))
    parser.add_argument("--rows", type=int)
    arguments = parser.parse_args()
    run(arguments.op, arguments.rows, profiled)


if __name__ == "__main__":
    main()
