"""The source package and the wheel hold what they should, and what is installed from the wheel starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.architecture.source import ROOT, tracked_files

# As in an isolated build, where torch is not at hand.
WITHOUT_TORCH = "import runpy, sys; sys.modules['torch'] = None; sys.argv[0] = 'setup.py'; runpy.run_path('setup.py')"


def python(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "FAIRSEQ_NATIVE")}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=variables | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, since builds leave directories behind."""
    copy = tmp_path_factory.mktemp("sources")
    for path in tracked_files():
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return copy


@pytest.fixture(scope="module")
def built(sources: Path) -> subprocess.CompletedProcess[str]:
    return python("-c", WITHOUT_TORCH, "sdist", "bdist_wheel", cwd=sources)


def test_source_package_is_the_whole_repository(sources: Path, built: object) -> None:
    (archive,) = (sources / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    visible = {
        str(path.relative_to(ROOT)) for path in tracked_files() if not str(path.relative_to(ROOT)).startswith(".")
    }
    assert visible <= names
    assert {name for name in names if name.endswith((".so", ".pyc"))} == set()


def test_wheel_holds_the_package_and_its_data(sources: Path, built: object) -> None:
    (wheel,) = (sources / "dist").glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in names} == {"fairseq", "fairseq_cli"}
    wanted = [path.relative_to(ROOT) for path in tracked_files()]
    wanted = [path for path in wanted if path.parts[0] in ("fairseq", "fairseq_cli") and "csrc" not in path.parts]
    assert {str(path) for path in wanted} <= names
    assert any(name.startswith("fairseq/ops/_data") for name in names), "the operators on arrays need no torch"


def test_build_without_torch_says_so_and_installs(sources: Path, built: subprocess.CompletedProcess[str]) -> None:
    assert "the operators on tensors are left out: torch cannot be imported" in built.stderr
    assert "pip install --no-build-isolation ." in built.stderr
    (wheel,) = (sources / "dist").glob("*.whl")
    home = sources / "installed"
    python("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", home, wheel, cwd=sources.parent)
    report = python("-m", "fairseq.cli.info", cwd=home.parent.parent, PYTHONPATH=str(home)).stdout
    assert f"({home / 'fairseq'})" in report
    (tensors,) = (line for line in report.splitlines() if line.startswith("  tensors"))
    assert "they were not built" in tensors and "pip install --no-build-isolation ." in tensors
