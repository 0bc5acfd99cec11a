# mypy: ignore-errors
# ruff: noqa: D101, D102
"""Python-backend model: user features -> ONNX Runtime user tower -> faiss -> exclusion."""

import json

import faiss
import numpy as np
import onnxruntime as ort
import torch
from user_features import Bundle, UserFeatures, Vocabulary, responses, take, tensors, unpack


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        threads = int(parameters["threads"]["string_value"])
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        faiss.omp_set_num_threads(threads)
        # From 4 queries of 64 dimensions on, BLAS beats faiss's default loop over the queries.
        faiss.cvar.distance_compute_blas_threshold = 256
        bundle = Bundle(parameters["bundle"]["string_value"])
        stage = bundle.manifest["retrieval"]
        self.num_candidates = stage["num_candidates"]
        self.features = UserFeatures(bundle, stage["bags"])
        self.items = Vocabulary(bundle, bundle.manifest["item_vocabulary"])
        self.has_dense = bool(bundle.manifest.get("dense_features"))
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.tower = ort.InferenceSession(bundle.graph(stage["graph"]), options)
        vectors = bundle.tensor(stage["index"]["vectors"]).astype(np.float32)
        self.index = faiss.IndexFlatIP(vectors.shape[1])
        self.index.add(vectors)
        self.fallback_rows = bundle.tensor(stage["fallback"]["rows"]).astype(np.int64)
        self.fallback_scores = bundle.tensor(stage["fallback"]["scores"])

    def execute(self, requests):
        ids, lengths = tensors(requests, "ids"), tensors(requests, "lengths")
        flat, starts, counts = unpack(ids, lengths)
        sparse, known = self.features.pool(flat, starts, counts)
        feed = {"sparse": sparse}
        if self.has_dense:
            feed["dense"] = np.concatenate(tensors(requests, "dense"))
        user = self.tower.run(None, feed)[0]
        faiss.normalize_L2(user)
        excluded = self.items.lookup(take(flat, starts[:, -1], counts[:, -1])) - 1
        rows, scores = self.search(user, excluded, counts[:, -1])
        for unknown in np.flatnonzero(~known):
            end = int(counts[: unknown + 1, -1].sum())
            banned = excluded[end - counts[unknown, -1] : end]
            rows[unknown], scores[unknown] = self.fallback(banned)
        return responses(ids, candidate_rows=rows, candidate_scores=scores)

    def search(self, user, excluded, counts):
        """Fetches as many more as one user excludes, then drops what is excluded."""
        k = self.num_candidates
        wanted = min(k + int(counts.max()), self.index.ntotal)
        scores, rows = self.index.search(user, wanted)
        if wanted == k:
            return rows, scores
        kept_rows = np.full((len(rows), k), -1, np.int64)
        kept_scores = np.full((len(rows), k), -np.inf, np.float32)
        banned = np.zeros(self.index.ntotal + 1, bool)
        end = 0
        for place, count in enumerate(counts):
            start, end = end, end + count
            banned[excluded[start:end]] = True
            banned[-1] = False  # where an unknown item, row -1, is noted
            kept = np.flatnonzero(~banned[rows[place]])[:k]
            kept_rows[place, : len(kept)] = rows[place, kept]
            kept_scores[place, : len(kept)] = scores[place, kept]
            banned[excluded[start:end]] = False
        return kept_rows, kept_scores

    def fallback(self, banned):
        kept = ~np.isin(self.fallback_rows, banned)
        rows = np.full(self.num_candidates, -1, np.int64)
        scores = np.full(self.num_candidates, -np.inf, np.float32)
        count = min(self.num_candidates, int(kept.sum()))
        rows[:count] = self.fallback_rows[kept][:count]
        scores[:count] = self.fallback_scores[kept][:count]
        return rows, scores
