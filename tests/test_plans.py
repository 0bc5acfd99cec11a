"""Which plans run where, and what a repository with plans needs."""

import pytest

from recengine import plans
from recengine.bundle import hash_file
from recengine.errors import BundleError, DeviceError
from recengine.gpu import Gpu
from recengine.plans import (
    Plan,
    SizeRange,
    check_plan,
    check_repository,
    server_arguments,
)

H200 = Gpu("NVIDIA H200", "9.0", "580.65.06", "13.0")
H100 = Gpu("NVIDIA H100 NVL", "9.0", "580.65.06", "13.0")
L4 = Gpu("NVIDIA L4", "8.9", None, "12.9")
T4 = Gpu("Tesla T4", "7.5", None, "12.9")


def make_plan(**changes):
    fields = {
        "file": {"bytes": 0, "sha256": []},
        "precision": "fp16",
        "tensorrt": "10.16.1.11",
        "gpu": H200.name,
        "compute_capability": H200.compute_capability,
        "driver": H200.driver,
        "cuda": H200.cuda,
        "axes": {"batch": SizeRange(min=1, opt=16, max=64)},
        "tf32": False,
        "version_compatible": False,
        "hardware_compatibility": "none",
    }
    return Plan(**(fields | changes))


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
        check_plan("ranker", plan, plan.tensorrt, gpu)
    assert f"found {gpu.name} ({gpu.compute_capability})" in str(error.value)
    assert "recengine compile BUNDLE --target gpu" in str(error.value)


@pytest.fixture
def repository(tmp_path):
    """A model repository with one plan, in the newest version of one model."""
    for version in ("ranker/2", "recommend/2"):
        (tmp_path / version).mkdir(parents=True)
    version = tmp_path / "ranker" / "2"
    (version / "model.plan").write_bytes(b"a plan")
    record = make_plan(file=hash_file(version / "model.plan"))
    (version / "plan.json").write_text(record.model_dump_json())
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


def test_a_server_is_told_of_plans_that_bring_code(repository):
    assert server_arguments(repository) == ["--cuda-memory-pool-byte-size=0:536870912"]
    record = repository / "ranker" / "2" / "plan.json"
    record.write_text(make_plan(version_compatible=True).model_dump_json())
    assert server_arguments(repository) == [
        "--cuda-memory-pool-byte-size=0:536870912",
        "--backend-config=tensorrt,version-compatible=true",
    ]
