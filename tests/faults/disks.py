"""Disks that are full, read-only or gone in the middle of a training, and data workers that die.

    python -m tests.faults.disks [--faults full-write ...] [--details out.jsonl]

Each ends the training with one sentence, or does not disturb it; what was stored stays readable, and once the cause is
gone the same command goes on, bit-identical to the undisturbed run.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults import warm
from tests.faults.kills import (
    HANG_SECONDS,
    Fault,
    Undisturbed,
    inspect,
    make_data,
    phase_of,
    report,
    same_end,
    undisturbed,
)
from tests.faults.warm import CALLS, Child, Event, Strike

MISTAKE = 2  # what a command ends with that prints one sentence
AT = 5  # the update after which something happens
FEW_BYTES = 160_000  # less than a checkpoint has


@dataclass(frozen=True)
class Trouble:
    """What happens to a training of the case ``case``.

    ``hook`` is called in the child with every event, ``prepare`` before it begins. ``says`` is in the sentence that ends it;
    without one, it ends as if nothing had been. ``loses``: whether updates may have to be made again.
    """

    case: str
    says: str = ""
    strike: Strike | None = None
    hook: Callable[[Event], None] | None = None
    prepare: Callable[[], None] | None = None
    loses: bool = True


def _after(updates: int, action: Callable[[], object]) -> Callable[[Event], None]:
    """Call ``action`` once, after so many updates."""

    def hook(event: Event) -> None:
        if event["event"] == "update" and event["updates"] == updates:
            action()

    return hook


def _after_save(number: int, action: Callable[[], object]) -> Callable[[Event], None]:
    """Call ``action`` once, after so many saves, in the thread that writes them."""
    saves = itertools.count(1)

    def hook(event: Event) -> None:
        if event["event"] == "saved" and next(saves) == number:
            action()

    return hook


def _small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (FEW_BYTES, FEW_BYTES))


def _remove() -> None:
    shutil.rmtree("checkpoints")


def _replace() -> None:
    os.rename("checkpoints", "moved")
    Path("checkpoints").touch()


def _shorten() -> None:
    """In place, as a copy does that starts again: the pages of the old file are gone."""
    os.truncate("../data-bin/train.bin", 0)


def _put_back(folder: Path, data: Path, copy: Path) -> None:
    shutil.copyfile(copy / "train.bin", data / "train.bin")
    if (folder / "moved").exists():
        (folder / "checkpoints").unlink()
        (folder / "moved").rename(folder / "checkpoints")


def _workers_die() -> None:
    """A data worker is killed when it has read so many sentences."""
    from fairseq.data.indexed_dataset import MMapIndexedDataset

    parent, read, count = os.getpid(), MMapIndexedDataset.read_tokens, itertools.count()

    def reading(dataset: MMapIndexedDataset, start: int, stop: int) -> Any:
        if os.getpid() != parent and next(count) == 39:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(dataset, start, stop)

    MMapIndexedDataset.read_tokens = reading  # type: ignore[method-assign]


def _few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))


def _failing(error: str, number: int, *names: str) -> dict[str, Any]:
    return {"strike": Strike(error, number, names or tuple(name for name in CALLS if name not in ("remove", "unlink")))}


TROUBLES = {
    "full from the start": Trouble("sync", "No space left", **_failing("ENOSPC", 1)),
    "full in a write": Trouble("sync", "No space left", **_failing("ENOSPC", 400)),
    "full in a flush": Trouble("sync", "No space left", **_failing("ENOSPC", 12, "fsync")),
    "full in a rename": Trouble("sync", "No space left", **_failing("ENOSPC", 9, "replace")),
    "full in the background": Trouble("async", "No space left", **_failing("ENOSPC", 400)),
    "quota exceeded": Trouble("workers", "quota exceeded", **_failing("EDQUOT", 300)),
    "broken disk": Trouble("sync", "Input/output error", **_failing("EIO", 10, "fsync")),
    "read-only": Trouble("sync", "Read-only file system", **_failing("EROFS", 10, "open")),
    "limited size of files": Trouble("sync", "File too large", hook=_after(AT, _small_files)),
    "directory removed": Trouble("sync", hook=_after(AT, _remove)),
    "directory removed, in the background": Trouble("async", hook=_after_save(AT, _remove)),
    "directory replaced by a file": Trouble("sync", "checkpoints", hook=_after(AT, _replace)),
    "data worker killed": Trouble("async-workers", "data worker", prepare=_workers_die, loses=False),
    "few open files": Trouble("workers", "open files", prepare=_few_files),
    "data shortened": Trouble("sync", "train.bin", hook=_after(AT, _shorten)),
}


def strike(name: str, case: Undisturbed, folder: Path) -> Iterator[Fault]:
    """The trouble ``name``, then the same command without it."""
    folder.mkdir()
    trouble = TROUBLES[name]
    first = warm.start(case.words, folder, trouble.strike, trouble.hook, trouble.prepare)
    first.wait(HANG_SECONDS)
    kill_group(first)
    _put_back(folder, folder.parent / "data-bin", folder.parent / "copy")
    complaints, stored, lost = inspect(first, 0, case, folder)
    complaints += _ending(first, trouble)
    if lost and not trouble.loses:
        complaints.append(f"{lost} updates are lost")
    yield Fault(trouble.case, name, phase_of(first.events[:-1]), lost, first.status, complaints)
    second = warm.start(case.words, folder)
    second.wait(HANG_SECONDS)
    complaints, _, _ = inspect(second, stored, case, folder)
    complaints += same_end(second, case, folder)
    if complaints:
        yield Fault(trouble.case, name, "going on", 0, second.status, complaints)


def kill_group(child: Child) -> None:
    """End what hangs, its data workers included."""
    if child.alive():
        child.send(signal.SIGKILL, group=child.status is None)


def _ending(child: Child, trouble: Trouble) -> Iterator[str]:
    if child.status != (MISTAKE if trouble.says else 0) or "Traceback" in child.said:
        yield f"status {child.status}: {child.said[-1500:]}"
    sentences = [line for line in child.said.splitlines() if line.startswith("fairseq-train: error: ")]
    if trouble.says and not (len(sentences) == 1 and trouble.says in sentences[0]):
        yield f"not a sentence with {trouble.says!r}: {sentences}"


def troubles(names: Sequence[str], folder: Path) -> Iterator[Fault]:
    data = make_data(folder)
    shutil.copytree(data, folder / "copy")
    known: dict[str, Undisturbed] = {}
    for number, name in enumerate(names):
        case = TROUBLES[name].case
        if case not in known:
            known[case] = undisturbed(case, data, folder / case)
        yield from strike(name, known[case], folder / str(number))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.disks", description=__doc__.splitlines()[0])
    parser.add_argument("--faults", nargs="*", choices=[*TROUBLES, []], default=list(TROUBLES), metavar="FAULT")
    parser.add_argument("--details", type=Path, help="write every fault to this file, a line of JSON each")
    args = parser.parse_args(argv)
    warm.load_all()
    with tempfile.TemporaryDirectory() as folder:
        return report(troubles(args.faults, Path(folder)), args.details)


if __name__ == "__main__":
    sys.exit(main())
