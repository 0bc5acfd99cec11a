"""Which plans run where, and what a repository with plans needs."""

import shlex

import pytest
from plan_records import H200, make_plan
from typer.main import get_command

from recengine import plans
from recengine.bundle import hash_file
from recengine.cli import app
from recengine.errors import BundleError, DeviceError
from recengine.gpu import Gpu
from recengine.plans import (
    SizeRange,
    check_plan,
    check_repository,
    rebuild_command,
    server_arguments,
)

H100 = Gpu("NVIDIA H100 NVL", "9.0", "580.65.06", "13.0")
L4 = Gpu("NVIDIA L4", "8.9", None, "13.0")
T4 = Gpu("Tesla T4", "7.5", None, "12.9")


@pytest.mark.parametrize(
    ("built", "compatible", "here", "runs"),
    [
        ("10.16.1.11", False, "10.16.1.11", True),
        ("10.16.1.11", False, "10.16.1.12", False),
        ("10.16.1.11", False, "11.4.0.106", False),
        ("10.16.1.11", True, "10.16.2.3", True),
        ("10.16.1.11", True, "11.4.0.106", True),
        ("10.9.0.34", True, "10.16.1.11", True),  # numbers, not text
        ("10.16.1.11", True, "10.9.0.34", False),
        ("11.0.0.1", True, "10.16.1.11", False),
        ("10.16.1.11", True, "12.0.0.1", False),
    ],
)
def test_versions_that_a_plan_runs_with(built, compatible, here, runs):
    plan = make_plan(tensorrt=built, version_compatible=compatible)
    if runs:
        check_plan("ranker", plan, here, H200)
        return
    with pytest.raises(
        DeviceError, match=rf"ranker: built for TensorRT {built}.*found TensorRT {here}"
    ):
        check_plan("ranker", plan, here, H200)


@pytest.mark.parametrize(
    ("compatibility", "gpu", "runs"),
    [
        ("none", H200, True),
        ("none", H100, False),
        ("same_compute_capability", H100, True),
        ("same_compute_capability", L4, False),
        ("ampere_plus", L4, True),
        ("ampere_plus", T4, False),
    ],
)
def test_gpus_that_a_plan_runs_on(compatibility, gpu, runs):
    plan = make_plan(hardware_compatibility=compatibility)
    if runs:
        check_plan("ranker", plan, plan.tensorrt, gpu)
        return
    with pytest.raises(DeviceError) as error:
        check_plan("ranker", plan, plan.tensorrt, gpu, rebuild="recengine compile this")
    assert f"found {gpu.name} ({gpu.compute_capability})" in str(error.value)
    assert "; run `recengine compile this` on this machine" in str(error.value)


def test_a_driver_for_an_older_major_version_of_cuda_than_at_build_is_refused():
    older = Gpu(H200.name, "9.0", "575.57.08", "12.9")
    with pytest.raises(DeviceError) as refused:
        check_plan("ranker", make_plan(), "10.16.1.11", older, rebuild="recengine compile this")
    expected = "built for a driver for CUDA 13 or later, found 575.57.08 (CUDA 12.9)"
    assert f"{expected}; run `recengine compile this` on this machine" in str(refused.value)


@pytest.mark.parametrize("cuda", ["13.0", "13.1", "14.0"])
def test_a_driver_as_at_build_or_later_is_taken(recwarn, cuda):
    later = Gpu(H200.name, "9.0", "600.1.1", cuda)
    check_plan("ranker", make_plan(), "10.16.1.11", later)
    assert not recwarn


def test_a_driver_for_an_older_minor_version_of_cuda_than_at_build_is_a_warning():
    older = Gpu(H200.name, "9.0", "580.65.06", "13.0")
    plan = make_plan(driver="590.44.01", cuda="13.1")
    with pytest.warns(UserWarning, match="ranker: built where the driver was") as warned:
        check_plan("ranker", plan, "10.16.1.11", older, rebuild="recengine compile this")
    (message,) = (str(warning.message) for warning in warned)
    assert "590.44.01 (CUDA 13.1), found 580.65.06 (CUDA 13.0)" in message
    assert "update the driver or run `recengine compile this`" in message


def write(version, **changes):
    (version / "model.plan").write_bytes(b"a plan")
    record = make_plan(file=hash_file(version / "model.plan"), **changes)
    (version / "plan.json").write_text(record.model_dump_json())


@pytest.fixture
def repository(tmp_path):
    """A model repository with one plan, in the newest version of one model."""
    for version in ("ranker/2", "recommend/2"):
        (tmp_path / version).mkdir(parents=True)
    write(tmp_path / "ranker" / "2")
    return tmp_path


@pytest.fixture
def here(monkeypatch):
    """Sets what this machine has."""

    def have(gpu, *tensorrt):
        known = {f"libnvinfer.so.{version.partition('.')[0]}": version for version in tensorrt}

        def version(library):
            if library not in known:
                raise DeviceError(f"[gpu] {library}: cannot open shared object file")
            return known[library]

        monkeypatch.setattr(plans, "current_gpu", lambda: gpu)
        monkeypatch.setattr(plans, "tensorrt_version", version)

    return have


def test_a_repository_is_checked_by_its_newest_versions(repository, here):
    here(H200, "10.16.1.11")
    check_repository(repository)
    here(L4, "10.16.1.11")
    with pytest.raises(DeviceError, match=r"ranker/2/model\.plan: built for NVIDIA H200 \(9\.0\)"):
        check_repository(repository)
    (repository / "ranker" / "3").mkdir()  # a version without a plan
    check_repository(repository)


def test_the_next_major_is_asked_where_the_plans_own_is_not_there(repository, here):
    here(H200, "11.4.0.106")
    with pytest.raises(DeviceError, match=r"TensorRT 10\.16\.1\.11, found TensorRT 11\.4\.0\.106"):
        check_repository(repository)
    here(H200)
    with pytest.raises(DeviceError, match=r"libnvinfer\.so\.10: cannot open"):
        check_repository(repository)


def test_a_plan_or_record_that_changed_is_refused(repository, here):
    here(H200, "10.16.1.11")
    path = repository / "ranker" / "2" / "model.plan"
    for content in (b"a plam", b"a pla"):
        path.write_bytes(content)
        with pytest.raises(BundleError, match=r"model\.plan: missing or changed"):
            check_repository(repository)
    path.unlink()
    with pytest.raises(BundleError, match=r"model\.plan: missing or changed"):
        check_repository(repository)
    path.with_name("plan.json").write_text("{}")
    with pytest.raises(BundleError, match=r"plan\.json: Field required"):
        check_repository(repository)


@pytest.mark.parametrize("sizes", [(2, 1, 3), (1, 4, 3), (0, 1, 2)])
def test_sizes_are_in_order(sizes):
    with pytest.raises(ValueError, match=r"expected min <= opt <= max|greater than 0"):
        SizeRange(**dict(zip(("min", "opt", "max"), sizes, strict=True)))


ALL_OPTIONS = [
    *("--precision=bf16", "--hardware-compatibility=ampere_plus", "--max-batch=32"),
    *("--usual-batch=8", "--usual-candidates=100", "--tf32", "--version-compatible"),
]


def test_the_command_that_builds_anew_is_whole(repository, here):
    """As the plans were built, and to this repository."""
    write(
        repository / "ranker" / "2",
        precision="bf16",
        axes={
            "batch": SizeRange(min=1, opt=8, max=32),
            "candidates": SizeRange(min=1, opt=100, max=1000),
        },
        tf32=True,
        version_compatible=True,
        hardware_compatibility="ampere_plus",
    )
    command = shlex.join(
        ["recengine", "compile", "BUNDLE", "--target=gpu", *ALL_OPTIONS, f"--out={repository}"]
    )
    assert rebuild_command(repository) == command
    here(T4, "10.16.1.11")
    with pytest.raises(DeviceError) as refused:
        check_repository(repository)
    assert f"found Tesla T4 (7.5); run `{command}` on this machine" in str(refused.value)


def test_the_command_names_the_sizes_of_all_plans(repository):
    (repository / "tower" / "2").mkdir(parents=True)
    candidates = SizeRange(min=1, opt=20, max=100)
    write(repository / "ranker" / "2", axes={"rows": candidates})
    write(repository / "tower" / "2")
    expected = {"--max-batch=64", "--usual-batch=16", "--usual-candidates=20"}
    assert expected < set(rebuild_command(repository).split())


def test_compile_has_every_option_of_the_command():
    options = {name for one in get_command(app).commands["compile"].params for name in one.opts}
    assert {option.partition("=")[0] for option in ALL_OPTIONS} < options


def test_a_server_is_told_of_plans_that_bring_code(repository):
    assert server_arguments(repository) == ["--cuda-memory-pool-byte-size=0:536870912"]
    write(repository / "ranker" / "2", version_compatible=True)
    assert server_arguments(repository) == [
        "--cuda-memory-pool-byte-size=0:536870912",
        "--backend-config=tensorrt,version-compatible=true",
    ]
