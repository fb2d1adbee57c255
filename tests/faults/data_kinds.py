"""Data with a manifest, and what ``fairseq-validate-data`` makes of them when one of their files is damaged."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from fairseq.cli import validate_data
from fairseq.errors import DataError
from tests.common import tiny_data_bin


def make_described(folder: Path) -> None:
    tiny_data_bin(folder)
    validated(folder, "--write-manifest")


def validated(folder: Path, *more: str) -> str:
    """What is printed. Raises DataError when there are problems."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        try:
            validate_data.cli_main([str(folder), *more])
        except SystemExit as ended:
            if ended.code == validate_data.FOUND_PROBLEMS:
                raise DataError(output.getvalue()[output.getvalue().index("problem: ") :]) from None
            raise
    return output.getvalue().replace(str(folder), "")
