"""The whole path from raw ids to recommendations in NumPy: the oracle of the engine's tests."""

from pathlib import Path

import numpy as np
from onnx.reference import ReferenceEvaluator

from recengine.bundle import load_tensor, read_manifest

NO_ITEM = -1


def top(ids, scores, k):
    """The k best, ties by earlier position; padded with -1 and -inf."""
    best = np.argsort(-scores, kind="stable")[:k]
    padding = k - len(best)
    return (
        np.concatenate([ids[best], np.full(padding, NO_ITEM, np.int64)]),
        np.concatenate([scores[best], np.full(padding, -np.inf)]).astype(np.float32),
    )


class Reference:
    """Answers as `recengine.Engine` does, from a bundle with ONNX graphs."""

    def __init__(self, directory, manifest=None):
        self.directory = Path(directory)
        self.manifest = manifest or read_manifest(directory)
        self.rows = {name: self.row_map(v) for name, v in self.manifest.vocabularies.items()}
        self.tables = {name: self.table(t) for name, t in self.manifest.tables.items()}
        self.graphs = {
            name: ReferenceEvaluator(str(self.directory / graph.file))
            for name, graph in self.manifest.graphs.items()
        }
        retrieval = self.manifest.retrieval
        self.vectors = self.load(retrieval.index.vectors).astype(np.float64)
        self.keys = self.load(retrieval.index.keys)
        self.fallback = self.load(retrieval.fallback.rows), self.load(retrieval.fallback.scores)

    def load(self, tensor):
        return load_tensor(self.directory, tensor)

    def row_map(self, vocabulary):
        if vocabulary.kind == "range":
            return {vocabulary.first + i: i + 1 for i in range(vocabulary.count)}
        keys, rows = self.load(vocabulary.keys), self.load(vocabulary.rows)
        return dict(zip(keys[rows >= 0].tolist(), rows[rows >= 0].tolist(), strict=True))

    def table(self, table):
        data = self.load(table.data)
        if table.row_type == "bf16":
            return (data.astype(np.uint32) << 16).view(np.float32)
        if table.row_type == "int4":
            scale, bias = data[:, :4].copy().view(np.float16).astype(np.float32).T[:, :, None]
            codes = np.stack([data[:, 4:] & 15, data[:, 4:] >> 4], axis=2).reshape(len(data), -1)
            return codes[:, : table.dim] * scale + bias
        values = data.astype(np.float32)
        return values if table.scales is None else values * self.load(table.scales)[:, None]

    def lists(self, users, row):
        """One user's ids by feature; the last list holds the excluded items."""
        ends = np.cumsum(users.lengths[row])
        return np.split(users.ids[row, : ends[-1]], ends[:-1])

    def user(self, stage, users, row):
        """Pooled embeddings of one user, and whether any id is known."""
        lists = self.lists(users, row)
        pooled, known = [], False
        for bag in stage.bags:
            position = [f.name for f in self.manifest.features].index(bag.feature)
            vocabulary = self.manifest.features[position].vocabulary
            ids = lists[position]
            if vocabulary == self.manifest.item_vocabulary:
                ids = ids[ids != NO_ITEM]
            rows = [self.rows[vocabulary].get(int(i), 0) for i in ids[-bag.max_length :]]
            known = known or any(rows)
            total = self.tables[bag.table][rows].sum(axis=0, dtype=np.float32)
            pooled.append(total / max(1, len(rows)) if bag.pooling == "mean" else total)
        return np.concatenate(pooled)[None].astype(np.float32), known

    def excluded(self, users, row):
        row_map = self.rows[self.manifest.item_vocabulary]
        rows = [row_map.get(int(i), 0) for i in self.lists(users, row)[-1]]
        return [r - 1 for r in rows if r]

    def run(self, graph, users, row, **inputs):
        if users.dense is not None:
            inputs["dense"] = users.dense[row : row + 1]
        return self.graphs[graph].run(None, inputs)[0][0]

    def retrieve(self, users, k):
        answers = [self.retrieve_one(users, row, k) for row in range(len(users.ids))]
        return tuple(map(np.stack, zip(*answers, strict=True)))

    def retrieve_one(self, users, row, k):
        sparse, known = self.user(self.manifest.retrieval, users, row)
        rows, scores = self.fallback
        if known:
            vector = self.run(self.manifest.retrieval.graph, users, row, sparse=sparse)
            norm = np.linalg.norm(vector.astype(np.float64)) or 1
            rows, scores = np.arange(len(self.keys)), self.vectors @ (vector / norm)
        kept = ~np.isin(rows, self.excluded(users, row))
        return top(self.keys[rows[kept]], scores[kept], k)

    def rank(self, users, candidates, candidate_scores, k):
        answers = [
            self.rank_one(users, row, candidates[row], candidate_scores[row], k)
            for row in range(len(users.ids))
        ]
        return tuple(map(np.stack, zip(*answers, strict=True)))

    def rank_one(self, users, row, candidates, candidate_scores, k):
        real = candidates != NO_ITEM
        candidates, scores = candidates[real], candidate_scores[real]
        sparse, known = self.user(self.manifest.ranking, users, row)
        if known and len(candidates):
            row_map = self.rows[self.manifest.item_vocabulary]
            rows = [row_map.get(int(i), 0) for i in candidates]
            items = self.tables[self.manifest.ranking.item_table][rows][None]
            scores = self.run(
                self.manifest.ranking.graph,
                users,
                row,
                sparse=sparse,
                items=items,
                candidate_scores=scores[None],
            )
        return top(candidates, scores, k)

    def recommend(self, users, k, num_candidates):
        return self.rank(users, *self.retrieve(users, num_candidates), k)
