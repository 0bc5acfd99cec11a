"""The training loop, with a task whose validation results are written down."""

import io
import sys

import lightning
import pytest
import torch
from torch import nn

from recengine.data import leave_last_out
from recengine.training.encode import encode
from recengine.training.fit import MONITOR, fit

RISES_LATE = (0.1, 0.3, 0.2, 0.2, 0.4, 0.2, 0.2, 0.2, 0.2, 0.5)


class Scripted(lightning.LightningModule):
    """Its one weight grows by 1 with each step; validation says what the script says."""

    def __init__(self, script):
        super().__init__()
        self.script = script
        self.steps = nn.Parameter(torch.zeros(()))

    def training_step(self, positions):
        return -self.steps

    def validation_step(self, positions):
        self.log(MONITOR, self.script[self.current_epoch], batch_size=len(positions))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1.0)


@pytest.fixture(scope="module")
def encoded(planted):
    return encode(leave_last_out(planted), 5)


def steps_kept(encoded, epochs, patience, progress=False):
    task = Scripted(RISES_LATE)
    one_step_an_epoch = len(encoded.learnable())
    fit(task, encoded, one_step_an_epoch, epochs, patience=patience, progress=progress)
    return task.steps


@pytest.mark.parametrize(
    ("patience", "epochs", "kept"), [(2, 10, 2), (3, 10, 5), (5, 10, 10), (5, 4, 2)]
)
def test_with_patience_the_best_epoch_is_kept(encoded, patience, epochs, kept):
    assert steps_kept(encoded, epochs, patience) == kept


@pytest.mark.parametrize("epochs", [1, 4, 10])
def test_without_patience_the_last_epoch_is_kept(encoded, epochs):
    assert steps_kept(encoded, epochs, None) == epochs


class Terminal(io.StringIO):
    def isatty(self):
        return True


class OutStream(io.StringIO):
    """Of a notebook's kernel, which says that it is no terminal."""

    __module__ = "ipykernel.iostream"


@pytest.mark.parametrize(
    ("stream", "shown"), [(Terminal, True), (OutStream, True), (io.StringIO, False)]
)
def test_a_bar_is_shown_where_a_line_can_be_written_over(encoded, monkeypatch, stream, shown):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream())
    steps_kept(encoded, 1, None, progress=True)
    assert ("Epoch 0" in sys.stdout.getvalue() + sys.stderr.getvalue()) == shown
