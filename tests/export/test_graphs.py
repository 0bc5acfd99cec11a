"""Single modules to ONNX."""

import pytest
import torch
from torch import nn

from recengine.errors import CompileError, InputError
from recengine.export.graphs import export_graph

INPUTS = {"sparse": ("batch", 4)}
OUTPUT = ("user", ("batch", 4))


class ConstantBatch(nn.Module):
    def forward(self, sparse):
        return sparse.reshape(len(sparse), 2, 2).flatten(1)


class Huge(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2**29, device="meta"))


def test_a_batch_size_that_is_traced_as_a_constant_is_refused(tmp_path):
    with pytest.raises(CompileError, match=r"tower\.onnx: input sparse: expected \['batch', 4\]"):
        export_graph(ConstantBatch(), INPUTS, OUTPUT, tmp_path / "tower.onnx")


def test_weights_that_no_onnx_file_holds_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"tower\.onnx: expected weights of at most 2147483647"):
        export_graph(Huge(), INPUTS, OUTPUT, tmp_path / "tower.onnx")


def test_a_module_that_computes_something_else_each_time_is_refused(tmp_path):
    class Random(nn.Module):
        def forward(self, sparse):
            return sparse + torch.rand_like(sparse)

    with pytest.raises(CompileError, match="user: expected what torch computes within"):
        export_graph(Random(), INPUTS, OUTPUT, tmp_path / "tower.onnx")
