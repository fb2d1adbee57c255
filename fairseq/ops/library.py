"""The operators on tensors: registration in ``torch.ops.fairseq`` and the compiled library behind them.

Every operator is declared here in Python with its reference implementation as the kernel for all devices, so that it exists, with
the same results, when nothing was compiled. The library (``fairseq/csrc/torch``, ``fairseq/csrc/cuda``), where there is
one, adds kernels for its devices, which then take precedence. Some operators have Triton kernels on CUDA
(``fairseq/ops/triton``). ``FAIRSEQ_NATIVE=0`` in the environment leaves both out.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fairseq.ops import self_check
from fairseq.ops.native import built

_HERE = Path(__file__).parent
_ON_CUDA: dict[str, self_check.Source] = {}  # operator -> its Triton kernels
_HINT = "pip install --no-build-isolation . in an environment that has torch, setuptools and wheel"


def define(schema: str, reference: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Declare ``fairseq::<schema>``; ``fake`` gives the shapes, ``reference`` computes where no compiled kernel is loaded."""
    name = "fairseq::" + schema.partition("(")[0]
    torch.library.define(name, schema[schema.index("(") :], tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(name, "CompositeExplicitAutograd", reference)
    torch.library.register_fake(name, fake)


def define_on_cuda(source: self_check.Source) -> None:
    """Let the operators of ``source`` run its kernels on CUDA where these work, else their reference implementations.

    The kernels are imported when they are needed; see :mod:`fairseq.ops.self_check`.
    """
    for name in source.references:
        torch.library.impl(f"fairseq::{name}", "CUDA", functools.partial(_run_on_cuda, source, name))
        _ON_CUDA[name] = source


def _run_on_cuda(source: self_check.Source, name: str, *arguments: Any) -> Any:
    like = _first_tensor(arguments)
    with torch.cuda.device(like.device):  # where Triton launches
        kernel = self_check.kernels(source, like.device, like.dtype).get(name)
        result = NotImplemented if kernel is None else kernel(*arguments)
        return source.references[name](*arguments) if result is NotImplemented else result


def _first_tensor(arguments: Sequence[Any]) -> torch.Tensor:
    first = next(argument for argument in arguments if isinstance(argument, (torch.Tensor, list, tuple)))
    return first if isinstance(first, torch.Tensor) else first[0]


def load() -> bool:
    """True when the compiled library of this installation is loaded; looks for it at the first call."""
    return _load() is None


def why_unavailable() -> str | None:
    """One sentence that says why the reference implementations run instead of compiled kernels, or None when they do not."""
    return _load()


def missing() -> bool:
    """True when there are no compiled operators although nobody switched them off."""
    return not load() and os.environ.get("FAIRSEQ_NATIVE") != "0"


@torch.compiler.assume_constant_result
def compiled_for(operator: str, device: str) -> bool:
    """Whether ``fairseq::<operator>`` has a compiled kernel for ``device`` (``"cpu"``, ``"cuda"``)."""
    return load() and torch._C._dispatch_has_kernel_for_dispatch_key(f"fairseq::{operator}", device.upper())


def has_kernel(operator: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether ``fairseq::<operator>`` has a kernel on ``device`` for ``dtype``: a compiled one, or one in Triton that works."""
    if device.type == "cuda" and operator in _ON_CUDA:
        return operator in self_check.kernels(_ON_CUDA[operator], device, dtype)
    return device.type in ("cpu", "cuda") and compiled_for(operator, device.type)


@functools.cache
def _load() -> str | None:
    if os.environ.get("FAIRSEQ_NATIVE") == "0":
        return "FAIRSEQ_NATIVE=0 is set in the environment"
    file = built("_torch", _HERE)
    if file is None:
        return f"they were not built (torch or a C++ compiler was missing at build time); install again: {_HINT}"
    problem = _load_file(file)
    cuda = built("_cuda", _HERE)
    if problem is None and cuda is not None:  # kernels for one more device: the others work without
        cuda_problem = _load_file(cuda)
        if cuda_problem is not None:
            warnings.warn(f"CUDA devices run the reference implementations: {cuda_problem}")
    return problem


def _load_file(file: Path) -> str | None:
    try:
        torch.ops.load_library(str(file))
    except (OSError, RuntimeError) as error:  # built for another torch, or from other sources
        return f"{file.name} does not fit this torch or these sources ({str(error).splitlines()[0]}); again: {_HINT}"
    return None
