"""Kernels that compilers make on the machine itself are tried once, per device and type, before they are used.

Compilers and drivers differ between machines, so a kernel that was never tried on this one is not trusted. Where one
differs from its reference implementation, or cannot be made, the reference implementations go on computing, and one
warning says why. ``FAIRSEQ_NATIVE=0`` in the environment switches all of these kernels off.

A module of Triton kernels (``fairseq/ops/triton/*_kernels.py``) has two tables: ``OPERATORS``, the functions that launch
them (NotImplemented from one leaves its arguments to the reference implementation), and ``PROBLEMS``, which makes small
odd arguments for each of them from a device and a type.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairseq.ops import triton
from fairseq.ops.tensorfloat import precision

#: Types that the kernels know. Others take the reference implementations.
TYPES = (torch.float32, torch.bfloat16, torch.float16)
Pairs = Iterable[tuple[Tensor, Tensor]]
"""What was found, and what was expected."""


@dataclass(frozen=True, eq=False)
class Source:
    """Where the kernels of some operators come from: ``load`` imports their module. ``references`` by operator.

    With ``products`` the kernels multiply, on tensor cores, numbers of the type that they are used for, also where results
    are wider.
    """

    load: Callable[[], Any]
    references: Mapping[str, Callable[..., Any]]
    products: bool = False

    def rounding(self, dtype: torch.dtype) -> float:
        """How far apart neighboring operands of products lie, relative to them; 0 where results say it all."""
        if not self.products:
            return 0.0
        return 2.0**-10 if dtype == torch.float32 and precision() == "tf32" else torch.finfo(dtype).eps


def kernels(source: Source, device: torch.device, dtype: torch.dtype) -> Mapping[str, Callable[..., Any]]:
    """The functions of ``source``, if they work on ``device`` for ``dtype``; else none."""
    if device.type != "cuda" or dtype not in TYPES or os.environ.get("FAIRSEQ_NATIVE") == "0":
        return {}
    if not triton.available(str(device)):
        return {}
    index = torch.cuda.current_device() if device.index is None else device.index
    with torch.cuda.device(index):  # where Triton launches
        return _tried(source, torch.device("cuda", index), dtype)


def worst(pairs: Pairs, rounding: float = 0.0) -> float:
    """The largest difference as a share of what rounding explains; NaN for NaN. A right kernel stays below 1.

    ``rounding``: of operands, see `Source.rounding`.
    """
    return float(torch.stack([_difference(found, expected, rounding) for found, expected in pairs]).max())


def differences(module: Any, references: Mapping[str, Callable[..., Any]], device: Any, dtype: torch.dtype) -> Pairs:
    """What every operator of ``module`` gives and changes, and what its reference implementation does."""
    for name, arguments in module.PROBLEMS(device, dtype).items():
        found, expected = (_results(function, arguments) for function in (module.OPERATORS[name], references[name]))
        yield from zip(found, expected, strict=True)


def _results(function: Callable[..., Any], arguments: Any) -> list[Tensor]:
    arguments = _mapped(torch.clone, arguments)
    tensors = _tensors([function(*arguments), arguments])
    return [tensor for tensor in tensors if tensor.numel() and tensor.is_floating_point()]


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    return [_mapped(change, part) for part in value] if isinstance(value, (list, tuple)) else value


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _mapped(lambda tensor: found.append(tensor) or tensor, value)  # type: ignore[func-returns-value]
    return found


def _difference(found: Tensor, expected: Tensor, rounding: float) -> Tensor:
    """The largest one, relative to the largest number; results are rounded once, but sums in float32 have another order."""
    limit = max((64 if found.dtype == torch.float32 else 4) * torch.finfo(found.dtype).eps, 4 * rounding)
    a, b = found.double().cpu(), expected.double().cpu()
    return (a - b).abs().max() / b.abs().max().clamp(min=1e-30) / limit


@functools.cache
def _tried(source: Source, device: torch.device, dtype: torch.dtype) -> Mapping[str, Callable[..., Any]]:
    operators, problem = _try(source, device, dtype)
    if problem is None:
        return operators
    names = ", ".join(source.references)
    warnings.warn(f"Triton kernels ({names}) are not used on {device} for {dtype}: {problem}")
    return {}


def _try(
    source: Source, device: torch.device, dtype: torch.dtype
) -> tuple[Mapping[str, Callable[..., Any]], str | None]:
    """The functions, and what is wrong with them."""
    try:
        module = source.load()
        with torch.no_grad():
            found = worst(differences(module, source.references, device, dtype), source.rounding(dtype))
    except Exception as error:  # whatever a compiler raises, there is another way
        return {}, f"they fail here ({type(error).__name__}: {str(error).splitlines()[:1]})"
    if found <= 1:
        return module.OPERATORS, None
    return {}, f"they differ from the reference implementations by {found:.2g} times what rounding explains"
