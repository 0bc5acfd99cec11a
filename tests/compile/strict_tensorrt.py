"""A module `tensorrt` that has what the real bindings have, and refuses everything else.

It is made from the signatures that tools/tensorrt_api.py read from NVIDIA's wheels. It checks
calls: names, argument names and types, enum members. It computes nothing: a test says the answers.
"""

import ast
import collections.abc
import enum
import inspect
import json
import types
from pathlib import Path

import onnx

from recengine.gpu import Gpu

API = Path(__file__).parent / "tensorrt_api"
VERSIONS = sorted(path.stem for path in API.glob("*.json"))

_PLAIN = {
    "bool": bool,
    "str": str,
    "int": int,
    "SupportsInt": (int, enum.Enum),
    "SupportsFloat": (int, float),
    "Buffer": (bytes, bytearray, memoryview),
    "tuple": tuple,
    "list": list,
    "Dims": (tuple, list),
}


GPU = Gpu("NVIDIA H200", "9.0", "580.65.06", "13.0")
PLAN, TIMINGS = b"a plan", b"some timings"


class StrictTensorRT(types.ModuleType):
    """One version of the bindings.

    Attributes:
        answers: by "Class.member", what a call or a property gives, or a function of the instance
            and the arguments; else an instance of the type that the signature says.
        calls: every call and every property that was set, as ("Class.member", arguments).
    """

    def __init__(self, version):
        super().__init__("tensorrt")
        surface = json.loads((API / f"{version}.json").read_text())
        self.__version__ = surface["version"]
        self.answers = {}
        self.calls = []
        self.known = {}
        for name, members in surface["enums"].items():
            self.known[name] = enum.Enum(name, members)
            self.known[name].__int__ = lambda member: member.value
        for name, spec in sorted(
            surface["classes"].items(), key=lambda item: len(item[1]["bases"])
        ):
            self.known[name] = self._class(name, spec)
        for name, value in self.known.items():
            owner, _, nested = name.rpartition(".")
            setattr(self.known[owner] if owner else self, nested, value)

    def __getattr__(self, name):
        raise AttributeError(f"TensorRT {self.__version__} has no {name}")

    def called(self, member):
        """The arguments of every call of "Class.member"."""
        return [arguments for name, arguments in self.calls if name == member]

    def make(self, name):
        """An instance as the library itself makes it."""
        return object.__new__(self.known[name])

    def _class(self, name, spec):
        bases = tuple(self.known[base] for base in spec["bases"][:1]) or (_Strict,)
        members = {"_api": self, "_writable": spec["writable"]}
        for method, signatures in spec["methods"].items():
            members[method] = self._method(name, method, signatures)
        if "__init__" not in members:
            members["__init__"] = _not_to_be_made
        for prop, kind in spec["readable"].items():
            members[prop] = self._property(name, prop, kind, spec["writable"].get(prop))
        return type(name, bases, members)

    def _method(self, owner, method, signatures):
        def call(instance, *args, **kwargs):
            overloads = map(_Signature, signatures)
            fitting = [one for one in overloads if one.takes(self.known, args, kwargs)]
            if not fitting:
                raise TypeError(
                    f"TensorRT {self.__version__}: {owner}.{method}: expected "
                    f"{' or '.join(signatures)}, found {args}, {kwargs}"
                )
            bound = fitting[0].bind(args, kwargs)
            self.calls.append((f"{owner}.{method}", bound))
            return self._answer(f"{owner}.{method}", instance, bound, fitting[0].returns)

        call.signatures = signatures
        return call

    def _property(self, owner, name, kind, taken):
        def read(instance):
            return self._answer(f"{owner}.{name}", instance, {}, kind)

        def write(instance, value):
            if not _accepts(self.known, taken, value):
                raise TypeError(
                    f"TensorRT {self.__version__}: {owner}.{name}: takes {taken}, found {value!r}"
                )
            self.calls.append((f"{owner}.{name}", {"value": value}))

        return property(read, write if taken else None)

    def _answer(self, member, instance, arguments, kind):
        if member in self.answers:
            answer = self.answers[member]
            return answer(instance, **arguments) if callable(answer) else answer
        if kind in self.known and not issubclass(self.known[kind], enum.Enum):
            return self.make(kind)
        return {"bool": True, "int": 0, "str": "", "list": []}.get(kind)


class _Strict:
    """Only what the bindings let be set can be set; what a subclass overrides must be theirs."""

    def __init_subclass__(cls):
        for name, function in vars(cls).items():
            base = getattr(cls.__mro__[1], name, None)
            if (
                cls.__module__ == __name__
                or name.startswith("_")
                or not inspect.isfunction(function)
            ):
                continue
            assert base is not None, f"{cls.__mro__[1].__name__} has no {name} to override"
            wanted = list(_Signature(base.signatures[0]).kinds)
            found = list(inspect.signature(function).parameters)[1:]
            assert found == wanted, f"{name}: the bindings call it with {wanted}, found {found}"

    def __setattr__(self, name, value):
        if type(self).__module__ == __name__ and not hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__} has no {name} to set")
        super().__setattr__(name, value)


def _not_to_be_made(instance, *args, **kwargs):
    raise TypeError(f"{type(instance).__name__}: no constructor defined")


class _Signature:
    def __init__(self, text):
        node = ast.parse(f"def call{text}: ...").body[0]
        self.returns = ast.unparse(node.returns)
        first_default = len(node.args.args) - len(node.args.defaults)
        self.kinds = {}
        parameters = []
        for at, argument in enumerate(node.args.args):
            self.kinds[argument.arg] = ast.unparse(argument.annotation)
            default = ... if at >= first_default else inspect.Parameter.empty
            parameters.append(
                inspect.Parameter(
                    argument.arg, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default
                )
            )
        self.signature = inspect.Signature(parameters)

    def bind(self, args, kwargs):
        return dict(self.signature.bind(*args, **kwargs).arguments)

    def takes(self, known, args, kwargs):
        try:
            bound = self.bind(args, kwargs)
        except TypeError:
            return False
        return all(_accepts(known, self.kinds[name], value) for name, value in bound.items())


def _accepts(known, kind, value):
    if kind in known:
        return isinstance(value, known[kind])
    if kind == "bool":
        return isinstance(value, bool)
    if kind.startswith("collections.abc.Sequence"):
        return isinstance(value, collections.abc.Sequence)
    return isinstance(value, _PLAIN.get(kind, ()))


def load_network(trt, model):
    """Gives the network the inputs and outputs of the model that was parsed."""
    graph = onnx.load_from_string(model).graph
    for kind, values in (("input", graph.input), ("output", graph.output)):
        ports = [port(trt, value) for value in values]
        trt.answers[f"INetworkDefinition.num_{kind}s"] = len(ports)
        trt.answers[f"INetworkDefinition.get_{kind}"] = lambda _, index, ports=ports: ports[index]
    return True


def port(trt, value):
    tensor = trt.make("ITensor")
    dims = [dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim]
    vars(tensor)["is"] = {"name": value.name, "dtype": trt.DataType.FLOAT, "shape": dims}
    return tensor
