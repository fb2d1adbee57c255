"""How kernels in Triton are tested without a device: in its interpreter, and by compiling them for one.

Triton decides where a kernel is defined whether it will be interpreted. So a test file that interprets kernels runs
itself again in a process of its own: see `interpret`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from fairseq.ops import triton as package
from tests.common import ROOT

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = (80, 90)  # sm_80 (A100) and sm_90 (H100)
needs_triton = pytest.mark.skipif(not package.installed(), reason="triton is not installed")
#: For the tests of a file that are run by `interpret`.
in_interpreter = pytest.mark.skipif(not INTERPRETED, reason="run in the interpreter, by another test of this file")
#: For all others of such a file.
outside = pytest.mark.skipif(INTERPRETED, reason="not for the interpreter")


def interpret(file: str) -> None:
    """Run the tests ``in_interpreter`` of ``file``."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", file]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


class Compiled(NamedTuple):
    """What a kernel became: its assembler text, and its use of registers and of memory for what did not fit them."""

    ptx: str
    registers: int
    spilled: int


_NAMES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
_NAMES |= {torch.int64: "*i64", torch.int32: "*i32"}


def compile_for(device: int, kernel: Any, arguments: Mapping[str, Any], folder: Path, **options: Any) -> Compiled:
    """``kernel`` for sm_``device``; an argument is a torch type (a pointer to such numbers), or a value.

    Names in capitals are constants, unless they are pointers. Of pointers and of integers that are multiples of 16 the
    compiler knows it, as it does when they are launched.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    multiples: dict[tuple[int, ...], Any] = {}
    for place, (name, value) in enumerate(arguments.items()):
        pointer = isinstance(value, torch.dtype)
        constant = name.isupper() and not pointer
        if constant:
            signature[name], constants[name] = "constexpr", value
        else:
            signature[name] = _NAMES[value] if pointer else "fp32" if isinstance(value, float) else "i32"
        if not constant and (pointer or (isinstance(value, int) and value % 16 == 0)):
            multiples[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, multiples)
    ptx = triton.compile(source, target=GPUTarget("cuda", device, 32), options=options).asm["ptx"]
    text = folder / "kernel.ptx"
    text.write_text(ptx)
    architecture = f"sm_{device}{'a' if device >= 90 else ''}"
    command = [
        get_ptxas(device).path,
        "-v",
        f"--gpu-name={architecture}",
        str(text),
        "-o",
        str(folder / "kernel.cubin"),
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spilled = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes spill stores", said)
    assert registers is not None and spilled is not None, said
    return Compiled(ptx, int(registers[1]), int(spilled[1]))
