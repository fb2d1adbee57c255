"""Read a checkpoint file without executing anything from it.

The file is read by ``torch.load(weights_only=True)``, whose unpickler knows only tensors and plain containers. On top
of those come the few names of `fairseq.checkpoint.records`, each mapped to an inert record and translated to plain
data by our own code afterwards; the names are allowed only during the call. Anything else is refused with a sentence
that names the class. There is no fallback.

Configurations of 2020 hold references such as ``${common.seed}``. Given to omegaconf, a string like
``${name:argument}`` would call whatever resolver this process has registered under that name; a file must not be able
to. So plain references are looked up here, and every other expression is refused.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import pickle
import pickletools
import re
import threading
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from typing import IO, Any

import torch
from torch import _weights_only_unpickler as unpickler

from fairseq.checkpoint.archive import check_archive
from fairseq.checkpoint.records import RECORDED, ForbiddenClass, empty_dict, plain, record_class
from fairseq.errors import CheckpointError
from fairseq.limits import MAX_REPEATED, excess

logger = logging.getLogger(__name__)

ZIP_MAGIC = b"PK\x03\x04"  # torch >= 1.6; before, a sequence of pickles

# (stand-in, name in the file): made once, because torch's allow-list goes by identity.
ALLOWED: list[Any] = [(record_class(path), path) for path in RECORDED] + [(empty_dict, "collections.defaultdict")]

_lock = threading.RLock()  # torch's allow-list is global


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """No file of that name."""


def load(path: str | os.PathLike[str], map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """The dictionary stored in ``path``.

    ``mmap``: leave the tensors in the file and page them in when used (zip files only). For reading weights it saves time
    and memory; do not keep such tensors while the file may be overwritten in place.

    Raises CheckpointError, one sentence naming the file: missing, empty, damaged, no checkpoint, with a class that is not
    allowed, or with values that are larger than the file.
    """
    name = os.fspath(path)
    zipped = _check_readable(name)
    if zipped:
        check_archive(name)
    else:
        logger.info(
            "%s has no checksums (it was saved before torch 1.6): damaged numbers in it would go unnoticed", name
        )
    mmap = zipped and mmap
    try:
        state = _load(name, map_location, mmap, ALLOWED)
        return _translate(name, state)
    except _UnknownFairseqNames as unknown:
        # The classes behind an old structured configuration are named by the metadata of omegaconf. They may be any of
        # the original's or of a plugin, so they are looked up in the file and let in as records, like all the others.
        extra = [(record_class(p), p) for p in unknown.names]
        return _translate(name, _load(name, map_location, mmap, ALLOWED + extra))


class _UnknownFairseqNames(Exception):
    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self.names = names


def _check_readable(name: str) -> bool:
    """Whether the file is a zip archive; raises CheckpointError when it cannot be a checkpoint at all."""
    if os.path.isdir(name):
        raise CheckpointError(f"{name} is a directory, not a checkpoint file; name the .pt file inside it")
    try:
        with open(name, "rb") as file:
            magic = file.read(4)
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(f"checkpoint {name} does not exist; check the path") from error
    except OSError as error:
        raise CheckpointError(
            f"cannot read checkpoint {name}: {error.strerror}; check the path and permissions"
        ) from error
    if not magic:
        raise CheckpointError(f"checkpoint {name} is empty; use an older checkpoint of the run")
    return magic == ZIP_MAGIC


def _load(name: str, map_location: Any, mmap: bool, allowed: list[Any]) -> Any:
    try:
        with _only_for_now(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol of foreign files, which are refused anyway
            return torch.load(name, map_location=map_location, weights_only=True, mmap=mmap)
    except MemoryError as error:
        raise CheckpointError(f"checkpoint {name} does not fit into memory") from error
    except OSError as error:
        if error.errno in (None, errno.EINVAL):
            raise _foreign(name, str(error)) from error
        raise CheckpointError(f"cannot read checkpoint {name}: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        raise _refusal(name, str(error), {path for _, path in allowed}) from error
    except Exception as error:  # a damaged pickle can raise anything; nothing of it ran
        raise _foreign(name, str(error)) from error


@contextlib.contextmanager
def _only_for_now(allowed: list[Any]) -> Iterator[None]:
    """Torch's allow-list with ``allowed`` in it, as it was afterwards.

    Names that somebody else has allowed globally stay, but ours win: the real class must not take a record's place. Of what
    torch itself allows, two functions can make gigabytes of a few bytes: they are limited to what files need.
    """
    names = {path for _, path in allowed}
    with _lock:
        before = torch.serialization.get_safe_globals()
        others = [entry for entry in before if _allowed_name(entry) not in names]
        builtin: dict[str, Any] = getattr(unpickler, "_get_allowed_globals", dict)()  # no public name; a test holds it
        saved = dict(builtin)
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others + allowed)
        try:
            builtin.pop("builtins.bytearray", None)
            builtin["_codecs.encode"] = _encode
            yield
        finally:
            builtin.update(saved)
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


def _encode(text: str, encoding: str) -> bytes:
    """``codecs.encode`` for the one codec that pickles of bytes name: others make their input longer."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"expected latin1 instead of the encoding {encoding!r}")
    return text.encode("latin1")


def _allowed_name(entry: Any) -> str:
    return entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"


def _translate(name: str, state: Any) -> dict[str, Any]:
    try:
        state = plain(state)
    except ForbiddenClass as forbidden:
        raise _forbidden(name, str(forbidden)) from None
    except Exception as error:
        raise CheckpointError(f"checkpoint {name} is malformed: {str(error) or type(error).__name__}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{name} holds a {type(state).__name__}, not the dictionary of a checkpoint")
    wrong = excess(state)
    if wrong is not None:
        raise CheckpointError(f"checkpoint {name} is refused: it holds {wrong}")
    return state


def _refusal(name: str, message: str, allowed: set[str]) -> Exception:
    """The reason for torch's refusal ``message``, found out by listing the names in the file."""
    if "GLOBAL" not in message and "lobal" not in message:
        return _foreign(name, message)
    try:
        unknown = sorted(path for path in globals_in(name) if path not in allowed and not _is_torch_global(path))
    except Exception:  # the listing is only for the message
        unknown = []
    match = re.search(r"GLOBAL ([\w.<>]+)", message)
    blamed = match.group(1) if match else "an unnamed class"
    foreign = [path for path in unknown if not path.startswith("fairseq.")]
    if unknown and not foreign:
        return _UnknownFairseqNames(unknown)
    attribute = blamed.rpartition(".")[2]  # torch shortens the module of built-ins
    return _forbidden(name, next((path for path in foreign if path.rpartition(".")[2] == attribute), blamed))


def _is_torch_global(path: str) -> bool:
    """Whether the weights-only unpickler knows ``path`` (a name by name question only: it decides a message)."""
    return path.startswith(("torch.", "collections.")) or path in (
        "_codecs.encode",
        "builtins.set",
    )


def globals_in(name: str) -> set[str]:
    """Dotted names of all classes and functions that the pickles in file ``name`` refer to; nothing is unpickled."""
    if zipfile.is_zipfile(name):
        with zipfile.ZipFile(name) as archive:
            return {
                path
                for member in archive.namelist()
                if member.endswith("data.pkl")
                for path in _globals(archive.open(member))
            }
    with open(name, "rb") as file:  # legacy: magic number, version, system, then the object
        return {path for _ in range(4) for path in _globals(file)}


def _globals(file: IO[bytes]) -> set[str]:
    found = set()
    for op, arg, _ in pickletools.genops(file):
        if op.name in ("GLOBAL", "INST"):
            module, _, attribute = str(arg).partition(" ")
            # Protocol 2 writes the names of Python 2: `__builtin__`, `copy_reg`, ...
            module, attribute = NAME_MAPPING.get((module, attribute), (IMPORT_MAPPING.get(module, module), attribute))
            found.add(f"{module}.{attribute}")
    return found


def _forbidden(name: str, path: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {name} is refused because it holds {path}, which is not among the classes that are safe to load; "
        "nothing in it was executed"
    )


def _foreign(name: str, message: str) -> CheckpointError:
    """The sentence for a file that torch cannot read, from torch's own ``message``."""
    with open(name, "rb") as file:
        magic = file.read(4)
    kind = "is truncated or damaged" if magic == ZIP_MAGIC or magic[:1] == b"\x80" else "is not a torch checkpoint"
    if "legacy .tar" in message or "TorchScript" in message:
        kind = f"is a {'TorchScript' if 'TorchScript' in message else 'tar'} archive, not a checkpoint"
    elif zipfile.is_zipfile(name) and not any(m.endswith("data.pkl") for m in zipfile.ZipFile(name).namelist()):
        kind = "is a zip archive, not a checkpoint"
    return CheckpointError(f"{name} {kind}{_reason(message)}; use another checkpoint")


def _reason(message: str) -> str:
    """The part of torch's ``message`` that tells something: `` (unexpected EOF ...)``, or nothing."""
    _, _, detail = message.rpartition("WeightsUnpickler error:")
    line = detail.strip().partition("\n")[0].partition(". ")[0]
    return f" ({line})" if re.search("failed|unexpected|nsupported|expected", line) and len(line) < 160 else ""


REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.\w+)*)\}")
MAX_CHAIN = 10  # references to references


def resolve_references(stored: Any, name: str) -> Any:
    """A copy of the configuration ``stored`` (dicts, lists, Namespaces) of file ``name`` without references.

    Raises CheckpointError for an expression that is not a reference, or one that leads nowhere or in a circle.
    """
    return _Resolver(stored, name).copy(stored, "cfg", 0)


class _Resolver:
    def __init__(self, root: Any, name: str) -> None:
        self.root = root
        self.name = name
        self.copied = 0

    def copy(self, value: Any, where: str, depth: int) -> Any:
        self.copied += 1
        if self.copied > MAX_REPEATED:
            raise CheckpointError(f"checkpoint {self.name} is refused: its configuration refers to itself too often")
        if isinstance(value, argparse.Namespace):
            return argparse.Namespace(**self.copy(vars(value), where, depth))
        if isinstance(value, dict):
            return {key: self.copy(item, f"{where}.{key}", depth) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.copy(item, f"{where}[{i}]", depth) for i, item in enumerate(value))
        if isinstance(value, str) and "${" in value:
            match = REFERENCE.fullmatch(value)
            if match is None:
                raise self._error(where, value, "an expression that is not evaluated when loading")
            if depth >= MAX_CHAIN:
                raise self._error(where, value, "a reference that leads in a circle")
            return self.copy(self._look_up(match.group(1), where, value), where, depth + 1)
        return value

    def _look_up(self, path: str, where: str, value: str) -> Any:
        node = self.root
        for key in path.split("."):
            node = vars(node) if isinstance(node, argparse.Namespace) else node
            if not isinstance(node, dict) or key not in node:
                raise self._error(where, value, "a reference that leads nowhere")
            node = node[key]
        return node

    def _error(self, where: str, value: str, reason: str) -> CheckpointError:
        return CheckpointError(f"checkpoint {self.name} has {where} = {value!r}, {reason}")
