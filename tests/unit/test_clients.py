"""What public programs import: here, or refused with a sentence. docs/compatibility.md has a line for each of them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.compat_report import KEPT, SENTENCE, judge_name

ROOT = Path(__file__).parents[2]


def clients() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each client with (module, name) of what it imports."""
    text = (ROOT / "tests/data/compat/clients.txt").read_text(encoding="utf-8")
    for part in text.split("\n[")[1:]:
        client, _, lines = part.partition("]\n")
        pairs = [line.partition(": ") for line in lines.splitlines()]
        yield client, [(module, name) for module, _, names in pairs for name in names.split()]


CLIENTS = dict(clients())


@pytest.mark.parametrize("client", CLIENTS)
def test_every_name_is_answered(client: str) -> None:
    wrong = []
    for module, name in CLIENTS[client]:
        expected = SENTENCE if name.endswith("!") else KEPT
        if judge_name(module, name.rstrip("!")) != expected:
            wrong.append(f"{module}.{name}")
    assert not wrong


@pytest.mark.parametrize("client", CLIENTS)
def test_the_page_tells_of_it(client: str) -> None:
    page = (ROOT / "docs/compatibility.md").read_text(encoding="utf-8")
    [row] = [line for line in page.splitlines() if line.startswith(f"| {client} |")]
    kept = sum(not name.endswith("!") for _, name in CLIENTS[client])
    assert f"| {kept}/{len(CLIENTS[client])} |" in row


def test_datasets_of_tasks_can_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugins put their own classes into the modules of tasks."""
    for module in ("fairseq.tasks.masked_lm", "fairseq.tasks.sentence_prediction"):
        found = importlib.import_module(module)
        mine = type("Mine", (found.PrependTokenDataset,), {})
        monkeypatch.setattr(found, "PrependTokenDataset", mine)
        assert importlib.import_module(module).PrependTokenDataset is mine
