"""Where an operation runs, so that one test covers the CPU and a GPU: NumPy in, NumPy out."""

import numpy as np

from recengine import DeviceEngine, ops


def _on_gpu(values, dtype):
    return None if values is None else ops.to_device(np.asarray(values, dtype))


def pool_on_gpu(tables, rows, lengths, *, weights=None, **options):
    """`ops.embedding_bag` of DeviceTables."""
    found = ops.embedding_bag(
        tables,
        _on_gpu(rows, np.int64),
        _on_gpu(lengths, np.int32),
        weights=_on_gpu(weights, np.float32),
        **options,
    )
    return found.numpy()


class Cpu:
    """The instruction set named."""

    thread_counts = (1, 2, 5)

    def __init__(self, isa):
        self.isa = isa

    def embedding_bag(self, tables, rows, lengths, **options):
        return ops.embedding_bag(tables, rows, lengths, isa=self.isa, **options)

    def cosine_topk(self, index, queries, k, **options):
        return ops.cosine_topk(index, queries, k, isa=self.isa, **options)

    def certified_topk(self, index, queries, k, **options):
        return ops.certified_topk(index, queries, k, isa=self.isa, **options)

    def order(self, candidate_ids, scores, k):
        return ops.order(candidate_ids, scores, k)

    def lookup(self, vocabulary, ids):
        return vocabulary.lookup(ids)


class Gpu:
    """The first GPU, real or emulated."""

    isa = None
    thread_counts = (None,)

    def embedding_bag(self, tables, rows, lengths, **options):
        return pool_on_gpu([ops.DeviceTable(table) for table in tables], rows, lengths, **options)

    def cosine_topk(self, index, queries, k, **options):
        return self.certified_topk(index, queries, k, **options)[:2]

    def certified_topk(self, index, queries, k, *, exclude=None, allow=None, threads=None):
        if isinstance(exclude, list):
            lengths = [len(rows) for rows in exclude]
            exclude = np.concatenate([np.empty(0, np.int64), *exclude]), lengths
        rows, scores, certificate = ops.certified_topk(
            ops.DeviceItemIndex(index),
            _on_gpu(queries, np.float32),
            k,
            exclude=exclude and (_on_gpu(exclude[0], np.int64), _on_gpu(exclude[1], np.int32)),
            allow=None if allow is None else ops.to_device(allow),
        )
        return rows.numpy(), scores.numpy(), certificate

    def order(self, candidate_ids, scores, k):
        ids, best = ops.order(_on_gpu(candidate_ids, np.int64), _on_gpu(scores, np.float32), k)
        return ids.numpy(), best.numpy()

    def lookup(self, vocabulary, ids):
        return ops.DeviceVocabulary(vocabulary).lookup(_on_gpu(ids, np.int64)).numpy()


class StagesOnGpu:
    """The stages of a directory on the first GPU, as those of `Engine`."""

    def __init__(self, directory, **options):
        self._engine = DeviceEngine(directory, **options)
        self.schema = self._engine.schema

    def look_up(self, users):
        return _to_numpy(self._engine.look_up(users))

    def look_up_candidates(self, users, candidates, scores):
        given = _on_gpu(candidates, np.int64), _on_gpu(scores, np.float32)
        return _to_numpy(self._engine.look_up_candidates(users, *given))

    def search(self, users, vectors, k=None):
        found = self._engine.search(users, _on_gpu(vectors, np.float32), k)
        return tuple(array.numpy() for array in found)

    def order(self, users, candidates, scores, graph_scores, k=None):
        given = _on_gpu(candidates, np.int64), _on_gpu(scores, np.float32)
        found = self._engine.order(users, *given, _on_gpu(graph_scores, np.float32), k)
        return tuple(array.numpy() for array in found)


def _to_numpy(inputs):
    return {name: array.numpy() for name, array in inputs.items()}
