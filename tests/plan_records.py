"""Records of TensorRT plans, and GPUs, as tests need them."""

from recengine.gpu import Gpu
from recengine.plans import Plan, SizeRange

H200 = Gpu("NVIDIA H200", "9.0", "580.65.06", "13.0")


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
