"""Python-backend model: user features -> ONNX Runtime user tower -> faiss -> exclusion."""

import json

import faiss
import numpy as np
import onnxruntime as ort
import torch
import triton_python_backend_utils as pb_utils
from user_features import Bundle, UserFeatures, Vocabulary, take, unpack


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        threads = int(parameters["threads"]["string_value"])
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        faiss.omp_set_num_threads(threads)
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
        ids = [tensor(request, "ids") for request in requests]
        lengths = [tensor(request, "lengths") for request in requests]
        flat, starts, counts = unpack(ids, lengths)
        sparse, known = self.features.pool(flat, starts, counts)
        feed = {"sparse": sparse}
        if self.has_dense:
            feed["dense"] = np.concatenate([tensor(request, "dense") for request in requests])
        user = self.tower.run(None, feed)[0]
        faiss.normalize_L2(user)
        excluded = self.items.lookup(take(flat, starts[:, -1], counts[:, -1])) - 1
        rows, scores = self.search(user, excluded, counts[:, -1])
        for unknown in np.flatnonzero(~known):
            end = int(counts[: unknown + 1, -1].sum())
            banned = excluded[end - counts[unknown, -1] : end]
            rows[unknown], scores[unknown] = self.fallback(banned)
        responses, user = [], 0
        for request_ids in ids:
            part = slice(user, user + len(request_ids))
            user = part.stop
            responses.append(
                pb_utils.InferenceResponse(
                    [
                        pb_utils.Tensor("candidate_rows", rows[part]),
                        pb_utils.Tensor("candidate_scores", scores[part]),
                    ]
                )
            )
        return responses

    def search(self, user, excluded, counts):
        """Fetches as many more as one user excludes, then drops what is excluded."""
        most = int(counts.max())
        k = self.num_candidates
        wanted = min(k + most, self.index.ntotal)
        scores, rows = self.index.search(user, wanted)
        if most:
            owners = np.repeat(np.arange(len(counts)), counts)
            banned = np.zeros((len(counts), self.index.ntotal + 1), bool)
            banned[owners, excluded] = True
            banned[:, -1] = False
            dropped = np.take_along_axis(banned, rows, axis=1)
            if dropped.any():
                order = np.argsort(dropped, axis=1, kind="stable")
                rows = np.take_along_axis(np.where(dropped, -1, rows), order, axis=1)
                scores = np.take_along_axis(np.where(dropped, -np.inf, scores), order, axis=1)
        rows, scores = rows[:, :k], scores[:, :k]
        missing = k - rows.shape[1]
        if missing:
            rows = np.pad(rows, ((0, 0), (0, missing)), constant_values=-1)
            scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
        return np.ascontiguousarray(rows), np.ascontiguousarray(scores)

    def fallback(self, banned):
        kept = ~np.isin(self.fallback_rows, banned)
        rows = np.full(self.num_candidates, -1, np.int64)
        scores = np.full(self.num_candidates, -np.inf, np.float32)
        count = min(self.num_candidates, int(kept.sum()))
        rows[:count] = self.fallback_rows[kept][:count]
        scores[:count] = self.fallback_scores[kept][:count]
        return rows, scores


def tensor(request, name):
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()
