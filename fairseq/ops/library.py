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
_ON_CUDA: dict[str, str] = {}  # operator -> its Triton kernels
_HINT = "pip install --no-build-isolation . in an environment that has torch, setuptools and wheel"


def define(schema: str, reference: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Declare ``fairseq::<schema>``; ``fake`` gives the shapes, ``reference`` computes where no compiled kernel is loaded."""
    name = "fairseq::" + schema.partition("(")[0]
    torch.library.define(name, schema[schema.index("(") :], tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(name, "CompositeExplicitAutograd", reference)
    torch.library.register_fake(name, fake)


def define_on_cuda(name: str, kernels: str, reference: Callable[..., Any]) -> None:
    """On CUDA ``fairseq::<name>`` is that function of the Triton kernels ``kernels`` where they work, else ``reference``.

    Nothing of Triton is imported before the first call; see :mod:`fairseq.ops.self_check`.
    """

    def run(*arguments: Any) -> Any:
        like = _first_tensor(arguments)
        with torch.cuda.device(like.device):  # where Triton launches
            module = self_check.kernels(kernels, like.device, like.dtype)
            return (reference if module is None else getattr(module, name))(*arguments)

    torch.library.impl(f"fairseq::{name}", "CUDA", run)
    _ON_CUDA[name] = kernels


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
        return self_check.kernels(_ON_CUDA[operator], device, dtype) is not None
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
