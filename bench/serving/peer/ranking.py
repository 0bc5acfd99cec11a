# mypy: ignore-errors
# ruff: noqa: D101, D102
"""Python-backend model: item rows -> ONNX Runtime ranker -> top-k."""

import json

import numpy as np
import onnxruntime as ort
import torch
from user_features import Bundle, UserFeatures, responses, tensors, unpack


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        threads = int(parameters["threads"]["string_value"])
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        bundle = Bundle(parameters["bundle"]["string_value"])
        stage = bundle.manifest["ranking"]
        self.k = stage["k"]
        self.features = UserFeatures(bundle, stage["bags"])
        self.has_dense = bool(bundle.manifest.get("dense_features"))
        self.items = bundle.table(stage["item_table"])
        self.keys = bundle.tensor(bundle.manifest["retrieval"]["index"]["keys"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.ranker = ort.InferenceSession(bundle.graph(stage["graph"]), options)

    def execute(self, requests):
        ids, lengths = tensors(requests, "ids"), tensors(requests, "lengths")
        sparse, known = self.features.pool(*unpack(ids, lengths))
        rows = np.concatenate(tensors(requests, "candidate_rows"))
        retrieved = np.concatenate(tensors(requests, "candidate_scores"))
        empty = rows < 0
        some_empty = empty.any()
        feed = {
            "sparse": sparse,
            "items": self.items[rows + 1],
            "candidate_scores": np.where(empty, 0, retrieved) if some_empty else retrieved,
        }
        if self.has_dense:
            feed["dense"] = np.concatenate(tensors(requests, "dense"))
        scores = self.ranker.run(None, feed)[0]
        if some_empty:
            scores = np.where(empty, -np.inf, scores)
        if not known.all():
            scores[~known] = retrieved[~known]
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self.k]
        best = np.take_along_axis(rows, order, axis=1)
        item_ids = np.where(best < 0, -1, self.keys[best])
        scores = np.take_along_axis(scores, order, axis=1)
        return responses(ids, item_ids=item_ids, scores=scores)
