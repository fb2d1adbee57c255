"""Kernels that compilers make on the machine itself are tried once, per device and type, before they are used.

Compilers and drivers differ between machines, so a kernel that was never tried on this one is not trusted. Each module
of Triton kernels (``fairseq/ops/triton/*_kernels.py``) has a function ``differences(device, dtype)``: what it gives on a
small odd problem, beside what the reference implementation gives. Where they differ, and where a kernel cannot be made,
the reference implementations go on computing, and one warning says why. ``FAIRSEQ_NATIVE=0`` in the environment
switches all of these kernels off.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fairseq.ops import triton

#: Types that the kernels know. Others take the reference implementations.
TYPES = (torch.float32, torch.bfloat16, torch.float16)
Pairs = Iterable[tuple[Tensor, Tensor]]  # (found, expected)


def kernels(name: str, device: torch.device, dtype: torch.dtype) -> Any | None:
    """The module ``fairseq.ops.triton.<name>_kernels`` if it works on ``device`` for ``dtype``, else None."""
    if device.type != "cuda" or dtype not in TYPES or os.environ.get("FAIRSEQ_NATIVE") == "0":
        return None
    if not triton.available(str(device)):
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    with torch.cuda.device(index):  # where Triton launches
        return _tried(name, torch.device("cuda", index), dtype)


def limit(dtype: torch.dtype) -> float:
    """What a right kernel stays below: results are rounded once, but sums in float32 have another order."""
    return (64 if dtype == torch.float32 else 4) * torch.finfo(dtype).eps


def worst(pairs: Pairs) -> float:
    """The largest difference, relative to the largest expected number of its pair."""
    return max(float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-30)) for a, b in pairs)


@functools.cache
def _tried(name: str, device: torch.device, dtype: torch.dtype) -> Any | None:
    module, problem = _try(name, device, dtype)
    if problem is None:
        return module
    warnings.warn(f"the Triton kernels for {name} are not used on {device}: {problem}")
    return None


def _try(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, str | None]:
    """The module, and what is wrong with it."""
    try:
        module = importlib.import_module(f"fairseq.ops.triton.{name}_kernels")
        with torch.no_grad():
            found, most = worst(module.differences(device, dtype)), limit(dtype)
    except Exception as error:  # whatever a compiler raises, there is another way
        return None, f"they fail here ({type(error).__name__}: {str(error).splitlines()[:1]})"
    if found <= most:
        return module, None
    return module, f"they differ from the reference implementation by {found:.2g}, more than {most:.2g}, in {dtype}"
