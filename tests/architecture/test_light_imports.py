"""``import fairseq``, every package and every configuration module leave torch, numpy and hydra alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.architecture import source

HEAVY = ("torch", "numpy", "hydra", "omegaconf", "tokenizers", "sentencepiece", "tqdm", "matplotlib")
PACKAGES = sorted(source.module_name(path) for path in source.PACKAGE.rglob("__init__.py"))


def heavy_after(*modules: str) -> list[str]:
    code = (
        f"import sys\nfor name in {list(modules)!r}: __import__(name)\n"
        f"print(','.join(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=source.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [name for name in done.stdout.strip().split(",") if name]


def test_import_fairseq_imports_nothing_heavy():
    assert heavy_after("fairseq") == []


def test_packages_import_nothing_heavy():
    assert heavy_after(*PACKAGES) == []


def test_configuration_modules_are_free_of_torch():
    modules = [source.module_name(path) for path in source.package_files() if path.stem in ("config", "configs")]
    assert modules and "torch" not in heavy_after(*modules)


@pytest.mark.parametrize("module", ["fairseq.ops.native", "fairseq.ops.batching", "fairseq.ops.blocks"])
def test_data_operators_are_free_of_torch(module: str):
    assert "torch" not in heavy_after(module)
