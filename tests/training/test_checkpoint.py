import json
import os
import shutil

import numpy as np
import pytest
import torch

from recengine.errors import BundleError, InputError
from recengine.training import checkpoint


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "checkpoint")


def test_a_round_trip_keeps_everything(trained, tmp_path):
    first = checkpoint.load(trained[0])
    checkpoint.save(first, tmp_path / "again")
    second = checkpoint.load(tmp_path / "again")
    plain = ("name", "features", "dense_features", "item_features", "num_candidates", "k")
    assert first.dense_means.keys() == {"height"}
    for field in (*plain, "quality", "dataset", "item_vocabulary", "dense_means"):
        assert getattr(first, field) == getattr(second, field)
    for field in ("vocabularies", "item_rows"):
        assert getattr(first, field).keys() == getattr(second, field).keys()
        for name, array in getattr(first, field).items():
            np.testing.assert_array_equal(array, getattr(second, field)[name])
    for name, ids in first.held_out.features.items():
        np.testing.assert_array_equal(ids.values, second.held_out.features[name].values)
    np.testing.assert_array_equal(first.held_out.targets, second.held_out.targets)
    torch.testing.assert_close(first.item_vectors(), second.item_vectors(), rtol=0, atol=0)
    torch.testing.assert_close(first.item_table(), second.item_table(), rtol=0, atol=0)


def test_a_checkpoint_is_three_files_without_pickle(trained):
    names = {path.name for path in trained[0].iterdir()}
    assert names == {"retrieval.safetensors", "ranking.safetensors", "recommender.json"}


def test_all_files_may_be_read_by_those_whom_the_umask_lets(trained, tmp_path):
    old = os.umask(0o027)
    try:
        checkpoint.save(checkpoint.load(trained[0]), tmp_path / "again")
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "again").iterdir()} == {0o640}


@pytest.mark.parametrize("name", ["retrieval.safetensors", "ranking.safetensors"])
def test_missing_and_damaged_weights_are_named(copy, name):
    (copy / name).write_bytes(b"no")
    with pytest.raises(BundleError, match=f"{name}: not safetensors"):
        checkpoint.load(copy)
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: missing"):
        checkpoint.load(copy)


def test_weights_of_another_model_are_refused(copy):
    shutil.copy(copy / "retrieval.safetensors", copy / "ranking.safetensors")
    with pytest.raises(BundleError, match=r"ranking\.safetensors: not the weights"):
        checkpoint.load(copy)


def test_another_format_version_is_refused(copy):
    path = copy / "recommender.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 9}))
    with pytest.raises(BundleError, match="format_version is 9, this recengine reads 1"):
        checkpoint.load(copy)


def test_a_checkpoint_without_means_is_read(copy):
    path = copy / "recommender.json"
    description = json.loads(path.read_text())
    del description["dense_means"]
    path.write_text(json.dumps(description))
    assert checkpoint.load(copy).dense_means == {}


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(BundleError, match="is this a checkpoint directory"):
        checkpoint.load(tmp_path)


class Evil:
    def __reduce__(self):
        return (print, ("code that a pickle file runs",))


def test_pickle_is_refused_unless_trusted_and_never_runs_code(tmp_path, capsys):
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"w": torch.ones(2)}}, path)
    with pytest.raises(InputError, match="found a pickle file"):
        checkpoint.load(path)
    with pytest.raises(InputError, match="found a pickle file"):
        checkpoint.load_pickled_weights(path)
    assert checkpoint.load_pickled_weights(path, trust=True)["w"].tolist() == [1, 1]

    torch.save({"state_dict": {"w": Evil()}}, path)
    with pytest.raises(InputError, match="expected plain weights"):
        checkpoint.load_pickled_weights(path, trust=True)
    assert capsys.readouterr().out == ""
