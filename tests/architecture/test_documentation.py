"""Every YAML and Python block of the documentation parses, and every file it points to exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

from tests.architecture import source
from tests.documents import fenced

PAGES = [path for path in source.tracked_files() if path.suffix == ".md"]
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(source.ROOT)))
def test_blocks_parse_and_links_lead_somewhere(page: Path) -> None:
    for text in fenced(page, "yaml"):
        assert isinstance(yaml.safe_load(text), dict), text
    for text in fenced(page, "python"):
        ast.parse(text)
    missing = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert not missing


def test_there_are_blocks_to_check() -> None:
    assert sum(len(fenced(page, language)) for page in PAGES for language in ("yaml", "python")) >= 5


def test_files_that_are_named_exist() -> None:
    paths = [f"/{path.relative_to(source.ROOT)}" for path in source.tracked_files()]
    page = (source.ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.(?:py|h))`", page)
    assert len(named) > 30
    assert not [name for name in named if not any(path.endswith(f"/{name}") for path in paths)]
