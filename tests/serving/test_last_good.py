"""A damaged newest version is set aside, and the last good one served."""

import errno
import fcntl
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from plan_records import make_plan
from raw_client import RawClient
from split_server import replace_backend, serve_split

from recengine.bundle import hash_file, versions
from recengine.compile import compile_bundle
from recengine.errors import ServerError
from recengine.serving.last_good import set_aside_damaged

MODELS = ("ranking", "recommend", "retrieval")


@pytest.fixture
def twice(golden, own_repository):
    """A repository with two good versions."""
    return compile_bundle(golden, own_repository)


@pytest.fixture
def split(golden, tmp_path):
    """A split repository with two good versions, and the text of its configs for the first."""
    repository = tmp_path / "split"
    replace_backend(compile_bundle(golden, repository, target="onnxruntime"))
    first = configs(repository)
    return replace_backend(compile_bundle(golden, repository, target="onnxruntime")), first


def configs(repository):
    return {path.parent.name: path.read_text() for path in repository.glob("*/config.pbtxt")}


def standing(repository):
    """The versions of all models, which all have the same."""
    (numbers,) = {tuple(versions(repository / model)) for model in MODELS}
    return numbers


def tree(repository):
    return sorted(str(path.relative_to(repository)) for path in repository.glob("*/*"))


def weights(version):
    return next(version.glob("*.bin"))


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    replace(path, content)


def replace(path, content):
    path.unlink()  # it is linked to other versions' and the bundle's
    path.write_bytes(content)


def test_a_damaged_newest_version_is_set_aside_and_the_last_good_one_served(
    twice, serve, users, tensors, tmp_path, capfd
):
    flip_a_byte(weights(twice / "retrieval" / "2"))
    asked = tensors(users.batch(np.random.default_rng(0), 4))
    with serve() as server, RawClient(server.endpoints.grpc) as client:
        assert client.infer("recommend", asked)["item_ids"].shape[0] == 4
        assert {client.statistics(model).version for model in MODELS} == {"1"}
    assert standing(twice) == (1,)
    assert all((twice / model / "failed-2").is_dir() for model in MODELS)
    said = r"WARNING .*back to version 1.* Damaged: retrieval/2: .*\.bin: .*SHA-256"
    assert re.search(said, capfd.readouterr().err)
    assert re.search(said, (tmp_path / "log").read_text())


def test_compile_adds_a_version_beside_what_was_set_aside(twice, golden, serve):
    for version in (2, 3):
        flip_a_byte(weights(twice / "ranking" / str(version)))
        assert f"ranking/{version} to failed-{version}" in set_aside_damaged(twice)
        compile_bundle(golden, twice)
        assert standing(twice) == (1, version + 1)
    with serve() as server, RawClient(server.endpoints.grpc) as client:
        assert {client.statistics(model).version for model in MODELS} == {"4"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda version: weights(version).unlink(),
        lambda version: replace(weights(version), weights(version).read_bytes()[:-1]),
        lambda version: (version / "manifest.json").unlink(),
        lambda version: replace(version / "manifest.json", b"{"),
    ],
    ids=["missing", "truncated", "no manifest", "no JSON"],
)
def test_every_kind_of_damage_is_found(twice, damage):
    damage(twice / "ranking" / "2")
    assert "Damaged: ranking/2: " in set_aside_damaged(twice)
    assert standing(twice) == (1,)


def test_the_newest_version_that_is_good_in_all_models_is_kept(twice, golden):
    compile_bundle(golden, twice)
    compile_bundle(golden, twice)
    flip_a_byte(weights(twice / "retrieval" / "4"))
    flip_a_byte(weights(twice / "ranking" / "3"))
    shutil.rmtree(twice / "recommend" / "2")  # of a compile that was killed
    shutil.copytree(twice / "retrieval", twice / "other")  # not ours: its config says nothing of us
    (twice / "other" / "config.pbtxt").write_text('backend: "identity"')
    done = set_aside_damaged(twice)
    assert "back to version 1," in done
    assert "retrieval/4: " in done
    assert "ranking/3: " in done
    assert standing(twice) == (1,)
    assert versions(twice / "other") == [1, 2, 3, 4]


def test_without_a_good_version_nothing_is_done_and_the_start_says_what_is_damaged(
    twice, serve, ended
):
    for version in "12":
        flip_a_byte(weights(twice / "retrieval" / version))
    before = tree(twice)
    with pytest.raises(ServerError, match=rf"{ended}:(.|\n)*retrieval/2/.*SHA-256"):
        serve().start()
    assert tree(twice) == before


@pytest.mark.parametrize(
    "spoil",
    [
        lambda repository: {"arguments": ["--no-such-option"]},
        lambda repository: {"arguments": ["--backend-config=recengine,threads=none"]},
        lambda repository: add(repository / "recommend" / "config.pbtxt", "unknown_field: 1\n"),
        lambda repository: add(
            repository / "ranking" / "config.pbtxt",
            'parameters { key: "recengine.max_queue_rows" value { string_value: "x" } }\n',
        ),
    ],
    ids=["option", "backend", "ensemble's config", "model's config"],
)
def test_a_start_that_fails_for_another_reason_leaves_the_versions_alone(
    twice, serve, ended, spoil
):
    options = spoil(twice)
    before = tree(twice)
    with pytest.raises(ServerError, match=ended):
        serve(**options).start()
    assert tree(twice) == before


def add(path, text):
    path.write_text(path.read_text() + text)
    return {}


def fail_at(monkeypatch, number):
    """Renames fail from the given one on, as on a disk that has become read-only."""
    rename, renamed = Path.rename, []

    def rename_or_fail(path, target):
        renamed.append(path)
        if len(renamed) >= number:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_or_fail)


def test_a_repository_that_cannot_be_changed_is_an_error_that_says_what_to_rename(
    twice, serve, monkeypatch
):
    flip_a_byte(weights(twice / "retrieval" / "2"))
    before = tree(twice)
    fail_at(monkeypatch, 1)
    with pytest.raises(ServerError) as refused:
        serve().start()
    for text in (
        "version 1 is the last good one",
        "Read-only file system",
        "rename ranking/2, recommend/2, retrieval/2 yourself",
        "Damaged: retrieval/2: ",
    ):
        assert text in str(refused.value)
    assert tree(twice) == before


@pytest.mark.parametrize("number", [2, 3])
def test_what_is_damaged_is_renamed_last_so_that_a_start_that_was_killed_is_made_good(
    twice, monkeypatch, number
):
    flip_a_byte(weights(twice / "ranking" / "2"))
    with monkeypatch.context() as context:
        fail_at(context, number)
        with pytest.raises(ServerError):
            set_aside_damaged(twice)
    assert versions(twice / "ranking") == [1, 2]
    assert "ranking/2 to failed-2" in set_aside_damaged(twice)
    assert standing(twice) == (1,)


def test_a_compile_at_work_is_not_disturbed(twice):
    flip_a_byte(weights(twice / "ranking" / "2"))
    before = tree(twice)
    descriptor = os.open(twice, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert set_aside_damaged(twice) is None
    os.close(descriptor)
    assert tree(twice) == before
    assert set_aside_damaged(twice) is not None


def test_what_an_older_recengine_cannot_read_is_not_damaged(twice):
    replace(twice / "ranking" / "2" / "manifest.json", b'{"format_version": 99}')
    flip_a_byte(weights(twice / "retrieval" / "2"))
    before = tree(twice)
    assert set_aside_damaged(twice) is None
    assert tree(twice) == before


def test_files_that_cannot_be_read_are_not_damaged(twice, monkeypatch):
    flip_a_byte(weights(twice / "retrieval" / "2"))
    unreadable = twice / "ranking" / "2" / "manifest.json"
    read_bytes = Path.read_bytes

    def read_or_fail(path):
        if path == unreadable:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read_or_fail)
    before = tree(twice)
    assert set_aside_damaged(twice) is None
    assert tree(twice) == before


def test_a_last_good_version_of_other_requests_is_not_served(twice, serve):
    for path in twice.glob("*/config.pbtxt"):  # as a compile with --change-schema leaves them
        text = path.read_text()
        order = r"[\"age\",\"activity\"]", r"[\"activity\",\"age\"]"
        assert order[0] in text
        path.write_text(text.replace(*order))
    flip_a_byte(weights(twice / "retrieval" / "2"))
    before = tree(twice)
    with pytest.raises(ServerError, match=r"takes other requests than .*--change-schema"):
        serve().start()
    assert tree(twice) == before


def test_a_split_repository_serves_all_of_the_last_good_version(split, tmp_path):
    repository, first = split
    flip_a_byte(next((repository / "retrieval_topk" / "2").glob("*.safetensors")))
    with (
        serve_split(repository, tmp_path) as server,
        RawClient(server.endpoints.grpc) as client,
    ):
        assert {client.statistics(model).version for model in first} == {"1"}
    assert configs(repository) == first


def test_a_plan_that_is_not_its_record_is_damage(split):
    repository, _ = split
    for version in "12":
        plan = repository / "tower" / version / "model.plan"
        plan.write_bytes(b"a plan")
        record = make_plan(file=hash_file(plan))
        plan.with_name("plan.json").write_text(record.model_dump_json())
    assert set_aside_damaged(repository) is None
    plan.write_bytes(b"a plam")
    assert "tower/2: " in set_aside_damaged(repository)
    assert versions(repository / "retrieval_topk") == [1]


def test_a_graph_that_is_not_its_record_is_damage(split):
    repository, _ = split
    assert set_aside_damaged(repository) is None
    flip_a_byte(repository / "tower" / "2" / "model.onnx")
    done = set_aside_damaged(repository)
    assert re.search(r"tower/2: .*model\.onnx: missing or changed; graph\.json", done)
    assert versions(repository / "retrieval_topk") == [1]
