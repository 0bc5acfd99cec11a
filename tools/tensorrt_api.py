"""Writes what TensorRT's Python bindings offer as JSON, from their wheels and without TensorRT.

    pip download --no-deps tensorrt-cu13-bindings==11.4.0.106
    python tools/tensorrt_api.py tests/compile/tensorrt_api tensorrt_cu13_bindings-11.4.0.106-*.whl

The bindings are real; the three libraries under them are empty ones made here, enough to import the
module and read its signatures. The wheel must be of the Python that runs this.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
CLASSES = (
    "Builder",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProgressMonitor",
    "ITensor",
    "ITimingCache",
    "Logger",
    "OnnxParser",
    "ParserError",
    "Runtime",
)
ENUMS = (
    "BuilderFlag",
    "DataType",
    "HardwareCompatibilityLevel",
    "ILogger.Severity",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "TensorIOMode",
)


def read_wheel(wheel: Path) -> dict[str, Any]:
    """The surface of the bindings in a wheel, read in a process of its own."""
    name, version = wheel.name.split("-")[:2]
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(wheel).extractall(folder)
        build_libraries(Path(folder), version.partition(".")[0])
        environment = os.environ | {"LD_LIBRARY_PATH": folder, "PYTHONPATH": folder}
        output = subprocess.run(
            [sys.executable, __file__, "--describe"],
            env=environment,
            check=True,
            stdout=subprocess.PIPE,
        ).stdout
    surface: dict[str, Any] = json.loads(output)
    return {"source": f"{name.replace('_', '-')}=={version}", **surface}


def build_libraries(folder: Path, major: str) -> None:
    """The shared libraries that the bindings link, with entry points that do nothing."""
    source = "".join(f"void *{name}(void) {{ return 0; }}\n" for name in ENTRY_POINTS)
    for library in LIBRARIES:
        soname = f"lib{library}.so.{major}"
        command = ["cc", "-x", "c", "-", "-shared", "-fPIC", f"-Wl,-soname,{soname}"]
        subprocess.run([*command, "-o", str(folder / soname)], input=source, text=True, check=True)


def describe() -> dict[str, Any]:
    """The classes and enums of the module that can be imported here."""
    import tensorrt_bindings as trt

    return {
        "version": trt.__version__,
        "classes": {name: describe_class(getattr(trt, name)) for name in CLASSES},
        "enums": {name: describe_enum(trt, name) for name in ENUMS},
    }


def describe_class(cls: type) -> dict[str, Any]:
    """Base classes, methods with their signatures, and types of the properties."""
    methods, readable, writable = {}, {}, {}
    for name, member in inspect.getmembers(cls):
        if isinstance(member, property):
            if member.fget is not None:
                readable[name] = signatures(member.fget)[0].rpartition(" -> ")[2]
            if member.fset is not None:
                taken = signatures(member.fset)[0].rpartition(") -> ")[0]
                writable[name] = taken.partition(": ")[2]
        elif (not name.startswith("_") or name == "__init__") and signatures(member):
            methods[name] = signatures(member)
    bases = [base.__name__ for base in cls.__mro__[1:] if base.__name__ in CLASSES]
    return {"bases": bases, "methods": methods, "readable": readable, "writable": writable}


def signatures(function: object) -> list[str]:
    """As pybind11 writes them: one per overload, without self; [] where there is none."""
    found = re.findall(r"^(?:\d+\. )?\w*(\(.*\) -> .+)$", inspect.getdoc(function) or "", re.M)
    return [cleaned(text) for text in found]


def cleaned(signature: str) -> str:
    """Valid Python: `(flags: SupportsInt = 0) -> INetworkDefinition`."""
    text = re.sub(r"tensorrt_bindings\.tensorrt\.|\w+::|typing(_extensions)?\.", "", signature)
    text = re.sub(r"IParserError\b", "ParserError", text)
    text = re.sub(r" = <[^>]*>", " = ...", text)
    return re.sub(r"^\((self|arg0): [\w.]+(, )?", "(", text)


def describe_enum(trt: Any, name: str) -> dict[str, int]:
    """Members and their values."""
    enum = trt
    for part in name.split("."):
        enum = getattr(enum, part)
    return {member: int(value) for member, value in enum.__members__.items()}


def main() -> int:
    """Writes one file per wheel."""
    if sys.argv[1:] == ["--describe"]:
        print(json.dumps(describe()))
        return 0
    folder, *wheels = map(Path, sys.argv[1:])
    for wheel in wheels:
        surface = read_wheel(wheel)
        path = folder / f"{surface['version']}.json"
        path.write_text(json.dumps(surface, indent=1) + "\n")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
