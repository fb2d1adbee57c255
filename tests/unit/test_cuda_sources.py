"""The CUDA sources compile for the devices that are supported, where there is a compiler; no device is needed."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.common import ROOT

SOURCES = sorted((ROOT / "fairseq" / "csrc" / "cuda").glob("*.cu"))
NVCC = shutil.which("nvcc")


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_compiles_for_sm_80_and_sm_90(source, tmp_path):
    devices = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in (80, 90)]
    command = [str(NVCC), "-std=c++17", "-O1", "-Werror", "all-warnings", *devices, "-c"]
    done = subprocess.run([*command, str(source), "-o", str(tmp_path / "out.o")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.o").stat().st_size > 0
