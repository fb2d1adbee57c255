"""The commands and blocks of the documentation, of ``--help`` and of printed advice, as a shell understands them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from tests.architecture import source

ROOT = source.ROOT
PAGES = [path for path in source.tracked_files() if path.suffix == ".md" and "data" not in path.relative_to(ROOT).parts]
FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:(?<=\n\n)|\A)((?: {4}\S.*\n)(?: {4}.*\n|\n(?= {4}))*)")
PROGRAMS = ("fairseq-", "python", "make", "pip", "mkdir")
_SHIM = '#!/bin/sh\nprintf "%s\\0" "$#" "${0##*/}" "$@" >> "$RECORDED"\n'
_NAMES = (
    *(
        f"fairseq-{name}"
        for name in ("train", "hydra-train", "validate", "validate-data", "preprocess", "preprocess-task", "glue")
    ),
    *(
        "fairseq-fill-mask",
        "fairseq-predict",
        "fairseq-convert",
        "fairseq-export",
        "fairseq-info",
        "huggingface-cli",
        "python",
        "make",
        "pip",
        "mkdir",
    ),
)


class Command(NamedTuple):
    """A program with its arguments, as they come out of the shell, and the block it is from."""

    program: str
    words: list[str]
    block: str

    def __str__(self) -> str:
        return " ".join([self.program, *self.words])


def fenced(page: Path, language: str) -> list[str]:
    """The blocks of ``page`` between three backquotes with ``language`` (may be empty), without their indentation."""
    found = FENCED.finditer(page.read_text(encoding="utf-8"))
    return [re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE) for match in found if match[2] == language]


def scripts(page: Path) -> list[str]:
    """The blocks of commands, in the order of the page."""
    text = page.read_text(encoding="utf-8")
    found = [(match.start(), match[3]) for match in FENCED.finditer(text) if match[2] in ("", "sh", "bash")]
    bare = FENCED.sub(lambda match: "\n" * match[0].count("\n"), text)
    found += [(match.start(), re.sub("^ {4}", "", match[1], flags=re.MULTILINE)) for match in INDENTED.finditer(bare)]
    return [block for _, block in sorted(found) if re.search(rf"^\s*({'|'.join(PROGRAMS)})", block, re.MULTILINE)]


def examples_of_help(text: str) -> list[str]:
    """The commands of a ``--help`` text: lines that begin with a program, with those that continue them."""
    found = re.findall(r"^ +(fairseq-[a-z-]+ (?:.*\\\n)*.*)$", text, re.MULTILINE)
    return [command for command in found if not command.startswith("fairseq-train and")]


def run_by_shell(block: str, folder: Path) -> list[Command]:
    """The commands that ``bash`` would run for ``block`` in the directory ``folder``, where none of them does anything."""
    shims = folder / ".shims"
    if not shims.is_dir():
        shims.mkdir(parents=True)
        for name in _NAMES:
            (shims / name).write_text(_SHIM)
            (shims / name).chmod(0o755)
    recorded = folder / ".recorded"
    recorded.write_bytes(b"")
    for name in re.findall(r"< *([\w./-]+)", block):
        (folder / name).touch()
    environment = {**os.environ, "PATH": f"{shims}{os.pathsep}{os.environ['PATH']}", "RECORDED": str(recorded)}
    done = subprocess.run(["bash", "-eu", "-c", block], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, f"{block}\n{done.stderr}"
    return list(_read(recorded.read_text().split("\0")[:-1], block))


def _read(fields: list[str], block: str) -> Iterator[Command]:
    at = 0
    while at < len(fields):
        count = int(fields[at])
        yield Command(fields[at + 1], fields[at + 2 : at + 2 + count], block)
        at += 2 + count


def yaml_blocks(page: Path) -> list[dict]:
    return [yaml.safe_load(text) for text in fenced(page, "yaml")]
