"""Small files of results: they appear at once, so that a kill at any moment leaves a whole one or none."""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from fairseq.data.text import json_value
from fairseq.errors import ConfigError
from fairseq.file_io import complete_file


def replace_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with complete_file(path) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as JSON, atomically."""
    replace_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def stored_json(path: Path) -> Any:
    """The JSON value of ``path``; None when it cannot be read."""
    with suppress(OSError, ValueError):
        return json_value(path.read_text(encoding="utf-8"))
    return None


def remove_made(directory: Path, mark: str) -> None:
    """Delete ``directory`` if it is there. Raises ConfigError when it has files but no ``mark``, that of this command."""
    if not directory.is_dir():
        return
    if not (directory / mark).is_file() and any(not entry.name.startswith(".") for entry in directory.iterdir()):
        raise ConfigError(f"{directory} was not made by fairseq-glue and would be replaced; choose another --out")
    shutil.rmtree(directory, ignore_errors=True)


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits that identify a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
