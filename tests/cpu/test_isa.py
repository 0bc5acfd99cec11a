import os
import subprocess
import sys

import pytest

from recengine import ops
from recengine.errors import DeviceError

NAMES = ["portable", "avx2", "avx512", "avx512_vnni", "amx_int8"]


def test_the_default_is_the_best_that_the_cpu_has(monkeypatch):
    monkeypatch.delenv("RECENGINE_ISA", raising=False)
    assert ops.default_isa() == ops.supported_isas()[-1]
    assert ops.supported_isas() == [name for name in NAMES if name in ops.supported_isas()]
    assert ops.supported_isas()[0] == "portable"


def test_the_environment_forces_one(monkeypatch):
    for name in ops.supported_isas():
        monkeypatch.setenv("RECENGINE_ISA", name)
        assert ops.default_isa() == name


def test_forcing_an_unknown_one_lists_the_names(monkeypatch):
    monkeypatch.setenv("RECENGINE_ISA", "mmx")
    with pytest.raises(
        DeviceError, match='portable, avx2, avx512, avx512_vnni, amx_int8; found "mmx"'
    ):
        ops.default_isa()


@pytest.mark.skipif(ops.supported_isas() == NAMES, reason="this CPU has them all")
def test_forcing_what_the_cpu_lacks_names_it(monkeypatch):
    missing = next(name for name in NAMES if name not in ops.supported_isas())
    monkeypatch.setenv("RECENGINE_ISA", missing)
    with pytest.raises(DeviceError, match=f"asks for {missing}, which this CPU lacks"):
        ops.default_isa()


def test_cores_are_those_of_the_affinity_mask():
    assert 1 <= ops.usable_cores() <= (os.cpu_count() or 1)
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from recengine import ops; print(ops.usable_cores())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "1"
