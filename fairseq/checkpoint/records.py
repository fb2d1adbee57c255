"""Inert stand-ins for the foreign classes in a checkpoint, and their translation to plain data by our own code.

A pickle names classes and asks the reader to call them. `fairseq.checkpoint.safe_load` lets a short list of names pass,
but hands the unpickler none of the real classes: every name maps to a `Record` subclass, which only remembers what it was
given. Not even omegaconf's own ``__setstate__`` runs. After loading, `plain` walks the result and builds what the records
stand for:

=============================================  ===============================================================
in the file                                    in the result
=============================================  ===============================================================
``argparse.Namespace``                         ``argparse.Namespace``
omegaconf ``DictConfig``, ``ListConfig``       ``dict``, ``list`` (interpolations stay strings)
omegaconf nodes                                their value
numpy scalars and arrays (no objects)          the same
``fairseq.meters.*``                           our meters
members of fairseq's option enums              the string
instances of fairseq's ``...Config`` classes   ``dict`` of their fields
=============================================  ===============================================================

A record that is none of these is refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fairseq.logging.meters import STORED_CLASSES, Meter


class ForbiddenClass(Exception):
    """A checkpoint holds something that `plain` does not rebuild; the argument is its dotted name."""


class Record:
    """What the file said about one object: the class it named, the arguments and the state. Nothing acts on it."""

    path = "?"

    # `object` would refuse the arguments; this keeps them.
    def __new__(cls, *args: Any, **kwargs: Any) -> Record:
        record = object.__new__(cls)
        record.__dict__.update(args=args, state=None)
        return record

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        # `__dict__` directly: a state named like an attribute of the class must not reach a setter.
        self.__dict__["state"] = state

    @property
    def fields(self) -> dict[str, Any]:
        """The instance dictionary that was pickled; a (dict, slots) pair counts its dictionary."""
        state = self.__dict__["state"]
        if isinstance(state, tuple) and len(state) == 2:
            state = state[0]
        return state if isinstance(state, dict) else {}


def record_class(path: str) -> type[Record]:
    """A fresh stand-in for the class or function called ``path``."""
    return type("Record", (Record,), {"path": path})


def empty_dict(*args: Any) -> dict:
    """Stands for ``collections.defaultdict``: its factory is dropped, its items follow."""
    return {}


NAMESPACE = "argparse.Namespace"
DICT_CONFIG = "omegaconf.dictconfig.DictConfig"
LIST_CONFIG = "omegaconf.listconfig.ListConfig"
OMEGACONF_NODES = (
    *(
        f"omegaconf.nodes.{kind}Node"
        for kind in ("Any", "String", "Integer", "Float", "Boolean", "Enum", "Bytes", "Path")
    ),
    "omegaconf.nodes.InterpolationResultNode",
    "omegaconf.nodes.ValueNode",
    "omegaconf.base.UnionNode",
)
# Only inside the metadata of containers, which `plain` drops unread.
OMEGACONF_METADATA = (
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.base.Node",
    "omegaconf.base.Container",
    "omegaconf.base.Box",
    "omegaconf.basecontainer.BaseContainer",
    "enum.Enum",
)
# Types that metadata mention; `typing.Optional[int]` is pickled as a call of `operator.getitem`.
TYPE_NAMES = (
    *(f"typing.{name}" for name in ("Any", "Union", "Optional", "List", "Dict", "Tuple", "Sequence", "Mapping")),
    *(
        f"builtins.{name}"
        for name in ("int", "float", "bool", "str", "bytes", "list", "dict", "tuple", "type", "object")
    ),
    "builtins.getattr",  # how Python 3.11.0 to 3.11.3 pickle a member of an enumeration
    "_operator.getitem",
    "operator.getitem",
    "types.NoneType",
    "types.UnionType",
    "types.GenericAlias",
)
NUMPY = tuple(
    f"numpy.{core}multiarray.{name}" for core in ("core.", "_core.") for name in ("scalar", "_reconstruct")
) + ("numpy.dtype", "numpy.ndarray")
METERS = tuple(f"fairseq.{home}.{name}" for home in ("meters", "logging.meters") for name in STORED_CLASSES)

RECORDED = (NAMESPACE, DICT_CONFIG, LIST_CONFIG, *OMEGACONF_NODES, *OMEGACONF_METADATA, *TYPE_NAMES, *NUMPY, *METERS)


def plain(value: Any) -> Any:
    """``value`` with every record replaced by what it stands for; containers are changed in place.

    Raises ForbiddenClass for a record that stands for nothing allowed, ValueError for one that is malformed or contains
    itself.
    """
    return _Translator().translate(value)


class _Translator:
    """One walk over a loaded object; what was seen before is translated once, so that sharing survives."""

    def __init__(self) -> None:
        self.done: dict[
            int, tuple[Any, Any]
        ] = {}  # id -> (the object, kept alive so that its id stays taken; the result)
        self.open: set[int] = set()

    def translate(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind in (str, int, float, bool, bytes, torch.Tensor):
            return value
        if isinstance(value, type):
            if issubclass(value, Record):  # a bare class where data belongs
                raise ForbiddenClass(value.path)
            return value
        key = id(value)
        if key in self.done:
            return self.done[key][1]
        if key in self.open:
            raise ValueError("an object in it contains itself")
        self.open.add(key)
        result = self._build(value)
        self.open.discard(key)
        self.done[key] = (value, result)
        return result

    def _build(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self._dict(value)
        if isinstance(value, list):
            value[:] = [self.translate(item) for item in value]
            return value
        if type(value) in (tuple, set):
            return type(value)(self.translate(item) for item in value)
        if isinstance(value, Record):
            return self._record(value)
        if isinstance(value, argparse.Namespace):
            self._dict(vars(value))
            return value
        return value  # torch's own kinds: parameters, sizes, dtypes, devices

    def _dict(self, value: dict) -> dict:
        if any(isinstance(key, Record) for key in value):
            items = [(self.translate(key), item) for key, item in value.items()]
            value.clear()
            value.update(items)
        for key, item in value.items():
            new = self.translate(item)
            if new is not item:
                value[key] = new
        for name, item in vars(value).items() if hasattr(value, "__dict__") else ():  # OrderedDict: `_metadata`
            vars(value)[name] = self.translate(item)
        return value

    def _record(self, record: Record) -> Any:
        path = record.path
        builder = BUILDERS.get(path)
        if builder is not None:
            return builder(record, self.translate)
        if path.startswith("fairseq."):
            if record.state is None and len(record.args) == 1 and isinstance(record.args[0], str):  # type: ignore[attr-defined]
                return record.args[0]  # type: ignore[attr-defined]
            if path.endswith("Config") and record.fields:
                return self.translate(dict(record.fields))
        raise ForbiddenClass(path)


Translate = Callable[[Any], Any]


def _member(record: Record, translate: Translate) -> str:
    """The name of a member of one of fairseq's enumerations, which is its value."""
    kind, name = (*record.__dict__["args"], None, None)[:2]
    if (
        isinstance(kind, type)
        and issubclass(kind, Record)
        and kind.path.startswith("fairseq.")
        and isinstance(name, str)
    ):
        return name
    raise ForbiddenClass(record.path)


def _namespace(record: Record, translate: Translate) -> argparse.Namespace:
    namespace = argparse.Namespace()
    for key, value in record.fields.items():
        if not isinstance(key, str):
            raise ValueError(f"a Namespace has the attribute {key!r}, which is not a name")
        vars(namespace)[key] = translate(value)
    return namespace


def _container(record: Record, translate: Translate) -> Any:
    """``_content`` holds the children, or a string (an interpolation or ``???``), or None."""
    if "_content" not in record.fields:
        raise ValueError(f"a {record.path} has no content")
    return translate(record.fields["_content"])


def _node(record: Record, translate: Translate) -> Any:
    fields = record.fields
    if "_val" not in fields and "_content" not in fields:
        raise ValueError(f"a {record.path} has no value")
    return translate(fields["_val"] if "_val" in fields else fields["_content"])


def _dtype(record: Any) -> np.dtype:
    """``numpy.dtype('f8', ...)`` with its byte order from the state; only plain numbers, booleans and strings."""
    if not isinstance(record, Record) or record.path != "numpy.dtype" or not record.__dict__["args"]:
        raise ValueError("a numpy value has no dtype")
    name, state = record.__dict__["args"][0], record.__dict__["state"]
    name = name.decode("ascii") if isinstance(name, bytes) else name
    if not isinstance(name, str) or name[:1] not in "biufcSU":
        raise ForbiddenClass(f"numpy.dtype({name!r})")
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
    order = order.decode("ascii") if isinstance(order, bytes) else order
    base: Any = np.dtype(name)
    return base.newbyteorder(order) if order in ("<", ">") else base


def _raw(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("latin-1")
    if isinstance(value, bytes):
        return value
    raise ValueError("a numpy value has no bytes")


def _numpy_scalar(record: Record, translate: Translate) -> Any:
    dtype, raw = record.__dict__["args"]
    return np.frombuffer(_raw(raw), dtype=_dtype(dtype), count=1)[0]


def _numpy_array(record: Record, translate: Translate) -> np.ndarray:
    _, shape, dtype, fortran, raw = record.__dict__["state"]
    flat = np.frombuffer(_raw(raw), dtype=_dtype(dtype))
    return flat.reshape(shape, order="F" if fortran else "C").copy()


def _numpy_dtype(record: Record, translate: Translate) -> np.dtype:
    return _dtype(record)


def _meter(record: Record, translate: Translate) -> Meter:
    """Files of 2018 and 2019 hold pickled meters; their later fields are missing."""
    fields = {"val": None, "sum": 0, "count": 0, "init": 0, "n": 0, "tensor": None, **record.fields}
    meter = STORED_CLASSES[record.path.rpartition(".")[2]]()
    meter.load_state_dict({key: translate(value) for key, value in fields.items()})
    return meter


BUILDERS: dict[str, Callable[[Record, Translate], Any]] = {
    NAMESPACE: _namespace,
    "builtins.getattr": _member,
    DICT_CONFIG: _container,
    LIST_CONFIG: _container,
    **dict.fromkeys(OMEGACONF_NODES, _node),
    **{path: _numpy_scalar for path in NUMPY if path.endswith(".scalar")},
    **{path: _numpy_array for path in NUMPY if path.endswith("._reconstruct")},
    "numpy.dtype": _numpy_dtype,
    **dict.fromkeys(METERS, _meter),
}
