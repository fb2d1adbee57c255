"""Step 1: the machine, versions, extensions, tests that need a device; ceilings of copies and products."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

from gpu_steps.setting import REPOSITORY, Case, Row, Setting, median_seconds

PACKAGES = ("torch", "triton", "transformers", "numpy", "hydra-core", "omegaconf", "antlr4-python3-runtime")


def cases(setting: Setting) -> list[Case]:
    return [
        Case("device", lambda: device(setting), least=2),
        Case("versions", versions, least=2),
        Case("extensions", lambda: extensions(setting), limit=150),
        Case("copy", lambda: copy(setting)),
        Case("product", lambda: product(setting)),
        Case("tests", lambda: tests(setting), least=20, limit=60),
    ]


def device(setting: Setting) -> Row:
    if setting.tiny:
        return {"name": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    found = torch.cuda.get_device_properties(0)
    capability, memory = f"{found.major}.{found.minor}", round(found.total_memory / 2**30, 1)
    return {"name": found.name, "capability": capability, "GiB": memory, "processors": found.multi_processor_count}


def versions() -> Row:
    found = {"python": platform.python_version(), "cuda": torch.version.cuda, "cores": os.cpu_count()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def extensions(setting: Setting) -> Row:
    """Build them where there are none for this Python, then say which operators have kernels for the device."""
    built = "were here"
    if not setting.tiny and not list((REPOSITORY / "fairseq" / "ops").glob(f"_cuda.cpython-{_version()}-*.so")):
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        said = [line for line in (done.stdout + done.stderr).splitlines() if "warning: fairseq" in line]
        built = "; ".join(said)[:600] or ("built here" if done.returncode == 0 else done.stderr[-600:])
    from fairseq.ops import library

    why = library.why_unavailable()
    compiled = [name for name in operators() if library.compiled_for(name, setting.device)]
    if not setting.tiny and not compiled:
        raise RuntimeError(f"no operator has a CUDA kernel ({built}; {why})")
    return {"extensions": built, "why_not": why, "compiled": compiled}


def _version() -> str:
    return f"{sys.version_info.major}{sys.version_info.minor}"


def operators() -> list[str]:
    """Names of all operators of this package that importing its modules registers."""
    import fairseq.modules.attention_backends
    import fairseq.modules.lm_head
    import fairseq.optim.precision  # noqa: F401

    prefix = "fairseq::"
    names = torch._C._dispatch_get_all_op_names()
    return sorted({name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix)})


def copy(setting: Setting) -> Row:
    x = torch.empty(setting.size(2**30, 2**16), dtype=torch.uint8, device=setting.device)
    y = torch.empty_like(x)
    return {"TB/s": 2 * x.numel() / median_seconds(setting, lambda: y.copy_(x)) * 1e-12}


def product(setting: Setting) -> Row:
    n = setting.size(8192, 64)
    a, b = (torch.randn(n, n, device=setting.device).bfloat16() for _ in range(2))
    return {"TFLOP/s": 2 * n**3 / median_seconds(setting, lambda: a @ b, budget=1.0) * 1e-12}


def tests(setting: Setting) -> Row:
    """The tests marked gpu; those files alone, since collecting all of them takes longer."""
    files = [path for path in sorted((REPOSITORY / "tests").rglob("test_*.py")) if _needs_device(path)]
    if not files:
        return {"summary": "no tests are marked gpu"}
    if setting.tiny:
        return {"files": [path.name for path in files]}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *map(str, files)]
    command += ["--device", "cuda", "--tb", "line"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).strip().splitlines() or ["no output"]
    failed = [line[:300] for line in lines if re.match(r"FAILED|ERROR|/.*Error", line)][:20]
    if done.returncode:
        raise RuntimeError(f"{lines[-1]} {failed}")
    return {"summary": lines[-1]}


def _needs_device(path: Path) -> bool:
    return "pytest.mark.gpu" in path.read_text(encoding="utf-8")
