"""Trainings in children that are forked from a process which has torch and fairseq loaded, and no threads: quick to start.

A child writes down what it does, a line of JSON each (`Event`), and in its files' calls a `Strike` may hit it. What is
written by one call of the system survives a SIGKILL.

    begin    the checkpoint is loaded                         updates
    update   one is made                                      updates, ids, loss (hexadecimal), weights (a digest)
    save     a save begins                                    updates
    call     a call that changes files is done                name, file
    prune    all files of the save are there, old ones go
    saved    the save is over
    end      the command ends                                 status
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

Event = dict[str, Any]
Hook = Callable[[Event], None]
CALLS = ("copy_file_range", "fsync", "open", "remove", "rename", "replace", "unlink", "write")
BUG = 70  # exit status of a child that ended with a traceback


@dataclass(frozen=True)
class Strike:
    """What happens at the ``number``-th of the calls ``names`` that change files, counted from 1.

    ``action``: the name of a signal, SIGKILL or one that asks the run to end; or of an error (ENOSPC, EROFS, ...) that this
    call and all later ones end with.
    ``when``: before the call, after it, or half-way through what it writes.
    """

    action: str
    number: int
    names: tuple[str, ...] = CALLS
    when: str = "before"


@dataclass
class Child:
    """A forked training; ``log`` has what it printed, ``events`` what it did."""

    pid: int
    log: Path
    journal: Path
    started: float = field(default_factory=time.monotonic)
    status: int | None = None  # negative: the signal

    def wait(self, seconds: float | None = None) -> int | None:
        """Until it ends, at most ``seconds``; returns its status, None while it runs."""
        if self.status is None:
            descriptor = os.pidfd_open(self.pid)
            try:
                ready, _, _ = select.select([descriptor], [], [], seconds)
            finally:
                os.close(descriptor)
            if ready:
                self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def send(self, number: int, group: bool = False) -> None:
        if self.status is None:
            (os.killpg if group else os.kill)(self.pid, number)

    def alive(self, seconds: float = 0.0) -> bool:
        """Whether any process of its group, its data workers included, is there after ``seconds`` at most."""
        end = time.monotonic() + seconds
        while _is_running(self.pid):
            if time.monotonic() >= end:
                return True
            time.sleep(0.1)
        return False

    @property
    def events(self) -> list[Event]:
        return [json.loads(line) for line in self.journal.read_text().splitlines()]

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")


def _is_running(group: int) -> bool:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, found = path.read_text().rpartition(")")[2].split()[:3]
            if int(found) == group and state != "Z":  # whoever inherits it may never ask for its status
                return True
    return False


def load_all() -> None:
    """Import what a training needs, before the forks."""
    import torch

    torch.set_num_threads(1)
    import fairseq.cli.train
    import fairseq.criterions.masked_lm
    import fairseq.dataclass.build
    import fairseq.dataclass.parser
    import fairseq.models.roberta
    import fairseq.optim.adam
    import fairseq.tasks.masked_lm
    import fairseq.training.run  # noqa: F401

    if threading.active_count() > 1 or len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("children cannot be forked from a process with threads")


def start(
    words: Sequence[object],
    folder: Path,
    strike: Strike | None = None,
    hook: Hook | None = None,
    prepare: Callable[[], None] | None = None,
) -> Child:
    """``fairseq-train`` with the arguments ``words``, in ``folder``, in a process group of its own.

    ``hook`` is called in the child with every event, ``prepare`` before anything else.
    """
    number = len(list(folder.glob("*.events")))
    log, journal = folder / f"{number:03d}.log", folder / f"{number:03d}.events"
    log.touch(), journal.touch()
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _train([str(word) for word in words], folder, log, _Recorder(journal, strike, hook), prepare)
    with contextlib.suppress(OSError):  # both do, so that it is done when either goes on
        os.setpgid(pid, pid)
    return Child(pid, log, journal)


def _train(
    words: list[str], folder: Path, log: Path, recorder: _Recorder, prepare: Callable[[], None] | None
) -> NoReturn:
    status: Any = BUG
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        output = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(output, 1), os.dup2(output, 2)
        recorder.install()
        if prepare is not None:
            prepare()
        from fairseq.cli import train

        try:
            train.cli_main(argv=words)
            status = 0
        except SystemExit as ended:
            status = ended.code or 0
        recorder.note(event="end", status=status)
    except BaseException:
        traceback.print_exc()
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # as an interpreter that ends: a writer writes on
        sys.stdout.flush(), sys.stderr.flush()
    finally:
        os._exit(status if isinstance(status, int) else BUG)


class _Recorder:
    """Notes events in the child, counts its calls, and strikes."""

    def __init__(self, journal: Path, strike: Strike | None, hook: Hook | None) -> None:
        self.journal, self.strike, self.hook = journal, strike, hook
        self.calls = 0
        self.micro_batches: list[tuple[Any, float]] = []

    def note(self, **event: Any) -> None:
        if os.getpid() != self.owner:  # a data worker has inherited the wrappers
            return
        os.write(self.descriptor, (json.dumps(event) + "\n").encode())
        if self.hook is not None:
            self.hook(event)

    def install(self) -> None:
        self.owner = os.getpid()
        self.descriptor = os.open(self.journal, os.O_WRONLY | os.O_APPEND)
        self._watch_calls()
        self._watch_saves()
        self._watch_updates()

    # -- calls that change files ----------------------------------------------------------------------------------

    def _watch_calls(self) -> None:
        from fairseq.checkpoint import atomic

        for name in CALLS:
            if name not in ("open", "write"):  # those of the files below
                setattr(os, name, self._counted(name, getattr(os, name)))
        atomic.open = self._open  # type: ignore[attr-defined]

    def _open(self, path: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
        if "w" not in mode:
            return open(path, mode, *more, **options)
        return _CountedFile(self.perform("open", lambda: open(path, mode, *more, **options), path), self)

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            file = arguments[-1] if name in ("rename", "replace") else arguments[0]
            return self.perform(name, lambda: call(*arguments, **options), file)

        return counted

    def perform(
        self, name: str, call: Callable[[], Any], file: Any = "", half: Callable[[], object] | None = None
    ) -> Any:
        """``call()``, counted; the strike may hit before, after, or after ``half()``."""
        if os.getpid() != self.owner:
            return call()
        strike, hits = self.strike, False
        if strike is not None and name in strike.names:
            self.calls += 1
            hits = self.calls == strike.number
            if strike.action.startswith("E") and self.calls >= strike.number:
                number = getattr(errno, strike.action)
                raise OSError(number, os.strerror(number))
            if hits and strike.when != "after":
                if strike.when == "half" and half is not None:
                    half()
                self._send(strike)
        result = call()
        self.note(event="call", name=name, file=os.path.basename(file) if isinstance(file, (str, Path)) else "")
        if hits and strike is not None and strike.when == "after":
            self._send(strike)
        return result

    def _send(self, strike: Strike) -> None:
        os.kill(os.getpid(), getattr(signal, strike.action))

    # -- saves and updates ----------------------------------------------------------------------------------------

    def _watch_saves(self) -> None:
        from fairseq.checkpoint import store

        save, prune = store.CheckpointStore.save, store.prune

        def recorded_save(owner: Any, state: Any, epoch: int, updates: int, *more: Any, **options: Any) -> Any:
            def made() -> Any:  # asked for when the save before is over, and something is to be written
                self.note(event="save", updates=updates)
                return state() if callable(state) else state

            return save(owner, made, epoch, updates, *more, **options)

        def recorded_prune(*arguments: Any) -> None:
            self.note(event="prune")
            prune(*arguments)
            self.note(event="saved")

        store.CheckpointStore.save = recorded_save  # type: ignore[method-assign]
        store.prune = recorded_prune

    def _watch_updates(self) -> None:
        from fairseq.tasks.fairseq_task import FairseqTask
        from fairseq.training.trainer import Trainer

        of_task, of_trainer, load = FairseqTask.train_step, Trainer.train_step, Trainer.load_checkpoint

        def batch_step(task: Any, sample: Any, *more: Any, **options: Any) -> Any:
            result = of_task(task, sample, *more, **options)
            self.micro_batches.append((sample["id"].tolist(), float(result[0])))
            return result

        def update(trainer: Any, samples: Any) -> Any:
            self.micro_batches.clear()
            result = of_trainer(trainer, samples)
            made = self.micro_batches
            self.note(
                event="update",
                updates=trainer.get_num_updates(),
                ids=[ids for ids, _ in made],
                loss=[loss.hex() for _, loss in made],
                weights=_digest(trainer.get_model().state_dict()),
            )
            return result

        def loaded(trainer: Any, *arguments: Any, **options: Any) -> Any:
            result = load(trainer, *arguments, **options)
            self.note(event="begin", updates=trainer.get_num_updates())
            return result

        FairseqTask.train_step = batch_step  # type: ignore[method-assign]
        Trainer.train_step, Trainer.load_checkpoint = update, loaded  # type: ignore[method-assign]


class _CountedFile:
    """A file whose writes are counted."""

    def __init__(self, file: Any, recorder: _Recorder) -> None:
        self._file, self._recorder = file, recorder

    def write(self, data: Any) -> int:
        def half() -> None:
            self._file.write(bytes(data)[: len(bytes(data)) // 2])
            self._file.flush()

        return self._recorder.perform("write", lambda: self._file.write(data), half=half)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _CountedFile:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()


def _digest(weights: dict[str, Any]) -> str:
    import torch

    found = hashlib.sha256()
    for name, value in weights.items():
        found.update(name.encode() + value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
