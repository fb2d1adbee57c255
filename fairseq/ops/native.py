"""Finds and loads the compiled operators; says why when there are none.

The data operators are plain C functions called through ctypes and not ``torch.library`` operators: they work on NumPy
arrays, are never differentiated, traced or put on a device, and preprocessing and data workers start about a second
sooner when nothing imports torch. Every caller has a reference implementation that gives the same result without them.

``FAIRSEQ_NATIVE=0`` in the environment switches them off (when building too).
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import os
from pathlib import Path
from typing import Any

import numpy as np

ABI = 1  # of fairseq/csrc/data; a library built for another number is not used
_HERE = Path(__file__).parent
_SIZES = ("uint16", "int32", "uint32", "int64")  # element types with a compiled version


def load() -> bool:
    """True when the compiled data operators are loaded and will be used."""
    return _load()[0] is not None


def why_unavailable() -> str | None:
    """One sentence that says why the compiled operators are not used, or None when they are."""
    return _load()[1]


def function(name: str, sizes: np.ndarray) -> tuple[Any, np.ndarray] | None:
    """The compiled function ``fairseq_<name>_<dtype>`` and ``sizes`` as it takes them; None: use the reference implementation.

    ``sizes`` is passed without a copy when it is contiguous and of a compiled type, and as int64 otherwise.
    """
    library = _load()[0]
    if library is None:
        return None
    dtype = sizes.dtype.name if sizes.dtype.name in _SIZES else "int64"
    sizes = np.ascontiguousarray(sizes, dtype=dtype)
    call = getattr(library, f"fairseq_{name}_{dtype}")
    call.restype = ctypes.c_int64
    return call, sizes


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    """The address of the first element, as ctypes passes it."""
    return ctypes.c_void_p(array.ctypes.data)


def reset() -> None:
    """Forget what was loaded, so that a changed ``FAIRSEQ_NATIVE`` counts (for tests)."""
    _load.cache_clear()


def built(name: str, directory: Path) -> Path | None:
    """The library ``name`` in ``directory`` that was built for this Python, if there is one."""
    files = (directory / f"{name}{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((file for file in files if file.is_file()), None)


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    if os.environ.get("FAIRSEQ_NATIVE") == "0":
        return None, "FAIRSEQ_NATIVE=0 is set in the environment"
    path = built("_data", _HERE)
    if path is None:
        return None, "they were not built; install with a C++ compiler: pip install -e . --no-build-isolation"
    try:
        library = ctypes.CDLL(str(path))
        library.fairseq_data_abi.restype = ctypes.c_int64
        found = library.fairseq_data_abi()
    except (OSError, AttributeError) as error:
        return None, f"{path.name} cannot be loaded ({error}); install again: pip install -e . --no-build-isolation"
    if found != ABI:
        return None, f"{path.name} was built from other sources (interface {found}, wanted {ABI}); install again"
    return library, None
