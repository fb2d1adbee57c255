"""The directory of a run: whose it is, how far the run has come, and how it is emptied."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

MARKER = "quickstart.json"
MADE_BY = "examples/quickstart/run.py"
# All that a run writes. Only these are ever deleted, and only beside the marker.
FILES = (
    *("train.txt", "valid.txt", "vocab.json", "merges.txt", "log.txt", "results.txt", "loss.png"),
    *("data-bin/train.*", "data-bin/valid.*", "data-bin/dict.txt", "data-bin/preprocess.log"),
    *("checkpoints/checkpoint_last.pt", "checkpoints/checkpoint_best.pt", "checkpoints/checkpoint_[0-9]*_[0-9]*.pt"),
    *("tensorboard/train*/events.out.tfevents.*", "tensorboard/valid/events.out.tfevents.*"),
)


class ForeignDirectory(Exception):
    """The directory holds something and was not made by the quickstart."""


class RunDirectory:
    """A directory with a marker, the file that says who made it; ``state`` (kept in it) is how far the run has come."""

    def __init__(self, path: Path):
        self.path = path
        self.log, self.results = path / "log.txt", path / "results.txt"
        self.data, self.checkpoints = path / "data-bin", path / "checkpoints"
        self.state: dict[str, Any] = {"made_by": MADE_BY}
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            self.state = self._read()
        path.mkdir(parents=True, exist_ok=True)
        self.note()

    def _read(self) -> dict[str, Any]:
        try:
            state = json.loads((self.path / MARKER).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # no such file, or not one of ours
            state = None
        if not isinstance(state, dict) or state.get("made_by") != MADE_BY:
            raise ForeignDirectory(
                f"{self.path} is not an empty directory and was not made by the quickstart: choose another --out"
            )
        return state

    def note(self, **facts: Any) -> None:
        """Add ``facts`` to the state and write it, whole or not at all."""
        self.state.update(facts)
        new = self.path / f"{MARKER}.new"
        new.write_text(json.dumps(self.state, indent=1) + "\n", encoding="utf-8")
        os.replace(new, self.path / MARKER)

    def clear(self) -> None:
        """Delete what a run wrote, nothing else, and forget the state."""
        for pattern in FILES:
            for file in self.path.glob(pattern):
                if file.parent.resolve().is_relative_to(self.path.resolve()):  # not through someone's link
                    file.unlink()
        self.state.clear()
        self.note(made_by=MADE_BY)
