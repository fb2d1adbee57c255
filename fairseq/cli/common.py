"""What every command shares: how it ends. A user's mistake is one line and exit status 2, Ctrl-C is status 130."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from fairseq.errors import FairseqError

T = TypeVar("T")

MISTAKE = 2
INTERRUPTED = 130


def run_command(program: str, main: Callable[[], T]) -> T:
    """Run ``main``; a FairseqError or KeyboardInterrupt ends ``program`` with one line and its exit status.

    Every other exception is a bug and propagates with its traceback.
    """
    try:
        return main()
    except FairseqError as error:
        fail(program, error)
    except KeyboardInterrupt:
        fail(program, "interrupted", INTERRUPTED)


def fail(program: str, message: object, status: int = MISTAKE) -> NoReturn:
    """Print ``program: error: message`` as one line to standard error and exit with ``status``."""
    sys.stdout.flush()
    print(f"{program}: error: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
    sys.exit(status)


def byte_progress(args: argparse.Namespace) -> Callable[[str, int], Any] | None:
    """Makes the bar of a file that is read, by its path and bytes; None when ``args`` wants no bars."""
    if getattr(args, "no_progress_bar", False) or getattr(args, "log_format", None) in ("none", "json"):
        return None
    import tqdm

    def bar(path: str, size: int) -> Any:
        # disable=None: only where there is a terminal
        return tqdm.tqdm(
            disable=None,
            total=size,
            desc=os.path.basename(path),
            unit="B",
            unit_scale=True,
            file=sys.stderr,
            leave=False,
        )

    return bar
