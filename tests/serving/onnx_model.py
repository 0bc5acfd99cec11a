"""A Python-backend model that runs the ONNX graph of its version, where a server has no backend
for it. With NumPy 2, tensors go in and out by DLPack."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options)
        self.inputs = [tensor["name"] for tensor in json.loads(args["model_config"])["input"]]
        self.output = self.session.get_outputs()[0].name

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        feed = {
            name: np.from_dlpack(pb_utils.get_input_tensor_by_name(request, name))
            for name in self.inputs
        }
        (found,) = self.session.run(None, feed)
        return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack(self.output, found)])
