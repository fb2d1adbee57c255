"""Writing a file of predictions, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from fairseq.errors import DataError


def write_text(path: str, text: str) -> None:
    """Write ``text`` to ``path``, whose directory is made if need be. Raises DataError when that is not possible."""
    place = Path(path)
    beside = place.with_name(place.name + ".partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8", newline="\n")
        os.replace(beside, place)
    except OSError as error:
        raise DataError(f"cannot write the predictions to {path}: {error.strerror or error}") from None
