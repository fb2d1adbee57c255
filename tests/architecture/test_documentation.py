"""Every YAML and Python block of the documentation parses, and every file it points to exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

from tests.architecture import source

PAGES = [path for path in source.tracked_files() if path.suffix == ".md"]
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def blocks(page: Path, language: str) -> list[str]:
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE) for match in found if match[2] == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(source.ROOT)))
def test_blocks_parse_and_links_lead_somewhere(page: Path) -> None:
    for text in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(text), dict), text
    for text in blocks(page, "python"):
        ast.parse(text)
    missing = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert not missing


def test_there_are_blocks_to_check() -> None:
    assert sum(len(blocks(page, language)) for page in PAGES for language in ("yaml", "python")) >= 5
