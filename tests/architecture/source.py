"""What the architecture tests look at: the tracked files and the parsed modules of the package."""

from __future__ import annotations

import ast
import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fairseq"


@functools.cache
def tracked_files() -> list[Path]:
    """Files under version control, or everything outside hidden and built directories in an unpacked archive."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode == 0 and listing.stdout:
        return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]
    return [
        path
        for path in sorted(ROOT.rglob("*"))
        if path.is_file() and not any(part.startswith(".") or part == "build" for part in path.relative_to(ROOT).parts)
    ]


@functools.cache
def package_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def module_name(path: Path) -> str:
    """Dotted name of a file of the package; a package's ``__init__`` has the name of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def module_names() -> frozenset[str]:
    return frozenset(module_name(path) for path in package_files())
