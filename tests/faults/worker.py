"""Tries damaged inputs of one kind, many in this process, and prints what happened to each as a line of JSON.

``python -m tests.faults.worker KIND SEED START STOP FOLDER``; FOLDER holds the good files. The process that started this
one notices when it says nothing for long or dies, and starts another one for the rest.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import random
import resource
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

from fairseq.errors import FairseqError
from tests.faults.damage import damaged
from tests.faults.kinds import KINDS, Kind

MEMORY = 3 << 30  # bytes beyond what this process has when it begins


def damage(kind: Kind, name: str, seed: int, number: int, good: Path, folder: Path) -> str:
    """Copy the ``good`` files to ``folder`` and damage one of them; returns its name."""
    rng = random.Random(f"{name} {seed} {number}")
    file = rng.choice(sorted(kind.damage))
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    (folder / file).write_bytes(damaged(kind.damage[file], rng, (good / file).read_bytes()))
    return file


def attempt(kind: Kind, folder: Path, good: str | None) -> tuple[str, str]:
    """(outcome, what was said or found) of reading ``folder``; ``good`` is the answer to the good files."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            answer = kind.answer(folder)
    except SystemExit as ended:
        lines = [line for line in errors.getvalue().splitlines() if ": error: " in line]
        if ended.code == 2 and lines and "Traceback" not in errors.getvalue():
            return "memory" if "too little memory" in lines[-1] else "sentence", lines[-1]
        return "traceback", f"exit {ended.code}: {errors.getvalue()[-300:]}"
    except FairseqError as error:
        return "sentence", str(error)
    except MemoryError as error:
        return "memory", _place(error)
    except BaseException as error:
        return "traceback", _place(error)
    return ("unchanged" if answer == good else "silent"), answer


def _place(error: BaseException) -> str:
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if "/fairseq/" in f.filename
    ] or traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    return f"{type(error).__name__}: {str(error)[:200]!r} at {Path(last.filename).name}:{last.lineno} {last.name}"


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def say(**values: Any) -> None:
    print(json.dumps(values), file=sys.__stdout__, flush=True)


def main(name: str, seed: int, start: int, stop: int, good: Path) -> None:
    kind = KINDS[name]
    logging.raiseExceptions = False
    folder = good.parent / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    outcome, answer = attempt(kind, folder, None)
    if outcome != "silent":
        raise AssertionError(f"the good files of {name}: {outcome}: {answer}")
    limit_memory()
    say(number=start - 1)
    for number in range(start, stop):
        try:
            file = damage(kind, name, seed, number, good, folder)
        except AssertionError:
            say(number=number, outcome="unchanged", file="", said="")
            continue
        say(number=number)
        outcome, said = attempt(kind, folder, answer)
        say(number=number, outcome=outcome, file=file, said=said[:400])


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    main(sys.argv[1], *map(int, sys.argv[2:5]), Path(sys.argv[5]))  # type: ignore[call-arg]
