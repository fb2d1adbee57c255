"""The CUDA sources compile as torch compiles them, for the devices that are supported; no device is needed."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig

import pytest
import torch
from torch.utils.cpp_extension import COMMON_NVCC_FLAGS, include_paths

from tests.common import ROOT

FOLDER = ROOT / "fairseq" / "csrc" / "cuda"
NVCC = shutil.which("nvcc")


def compile_source(source, out, *more: str) -> None:
    devices = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in (80, 90)]
    flags = ["-std=c++17", "-O1", "-Werror", "all-warnings", *COMMON_NVCC_FLAGS, *devices, *more]
    command = [str(NVCC), *flags, "-c", str(source), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    assert out.stat().st_size > 0


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("source", sorted(FOLDER.glob("*.cu")), ids=lambda path: path.name)
def test_kernels_compile_with_the_flags_of_torch(source, tmp_path):
    compile_source(source, tmp_path / "out.o")


@pytest.mark.skipif(NVCC is None or not torch.version.cuda, reason="no nvcc, or no CUDA build of torch")
@pytest.mark.parametrize("source", sorted(FOLDER.glob("*.cpp")), ids=lambda path: path.name)
def test_bindings_compile_against_a_cuda_build_of_torch(source, tmp_path):
    paths = [*include_paths("cuda"), sysconfig.get_path("include")]
    compile_source(source, tmp_path / "out.o", *(f"-I{path}" for path in paths))
