"""Kernels in Triton, and the operators of ``torch.ops.fairseq`` that launch them.

CUDA builds of torch bring Triton; without it, and on the CPU, these operators run their reference implementations, so
that nothing here needs Triton to be imported. A module named ``*_kernels`` imports it and is itself imported by the
operator beside it when a kernel is launched for the first time. With ``TRITON_INTERPRET=1`` in the environment before
that, the kernels run on the CPU in Triton's interpreter: slow, for tests.
"""

from __future__ import annotations

import functools
import importlib.util
import os

OLDEST = (8, 0)  # compute capability of the oldest devices that the kernels are compiled for in the tests


def installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels run in the interpreter, on the CPU. Triton decides it where kernels are defined, for good."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def available(device: str) -> bool:
    """Whether kernels run on tensors of ``device``: ``"cuda"``, or ``"cpu"``, where only the interpreter does.

    A device with a number (``"cuda:1"``) is asked for its own age, ``"cuda"`` for that of the current one.
    """
    kind, _, number = device.partition(":")
    if not installed() or kind not in ("cuda", "cpu"):
        return False
    if kind == "cpu" or interpreted():
        return kind == "cpu" and interpreted()
    import torch

    if torch.version.cuda is None or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(int(number) if number else None) >= OLDEST
