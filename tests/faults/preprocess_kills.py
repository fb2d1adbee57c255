"""Preprocessing that is killed, stopped or out of room, at random moments: ``python -m tests.faults.preprocess_kills``.

Every attempt starts with a directory of data, makes other data in their place, and meets one fault. Afterwards the directory
must hold the old data, the new ones, or none that can be read, and no process may be left. The next run must succeed, leave
nothing beside its files, and say what it took away. The end must be a sentence and the right status. Prints how often the
old data, the new ones or none were there, how often the fault came too late, and every failure; exit status 1 when there is
one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fairseq.data.validation import check_folder, data_folders
from tests.runs import environment

FAULTS = ("kill", "terminate", "hang up", "interrupt", "kill a worker", "kill at a rename", "no room")
SIGNALS = {
    "kill": signal.SIGKILL,
    "terminate": signal.SIGTERM,
    "hang up": signal.SIGHUP,
    "interrupt": signal.SIGINT,
}
PATIENCE = 60.0  # seconds in which everything must have ended

_CHILD = """
import importlib, os, signal, sys
last, module, *words = sys.argv[1:]
calls = 0

def counted(call):
    def wrapper(*args, **more):
        global calls
        calls += 1
        if calls == int(last):
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **more)
    return wrapper

for name in ("replace", "rename", "unlink", "rmdir"):
    setattr(os, name, counted(getattr(os, name)))
importlib.import_module(module).cli_main(words)
"""


@dataclass
class Command:
    """A command that can make the data called ``old`` and ``new`` in a directory; ``first`` is the file without which
    nothing else is read."""

    name: str
    module: str
    words: Callable[[str, Path, Path, int], list[str]]  # (which data, folder of sources, directory to make, workers)
    first: str
    renames: int  # and removals: about as many as a run makes

    def made(self, folder: Path, which: str) -> Path:
        return folder / f"{self.name}-{which}"


def _corpus_words(which: str, folder: Path, out: Path, workers: int) -> list[str]:
    text, dictionary = folder / f"{which}.txt", folder / f"{which}.dict"
    flags = {"--trainpref": text, "--validpref": folder / f"{which}.valid", "--srcdict": dictionary, "--destdir": out}
    return ["--only-source", "--workers", str(workers), *(str(word) for pair in flags.items() for word in pair)]


def _task_words(which: str, folder: Path, out: Path, workers: int) -> list[str]:
    flags = {"--task": "plain", "--data-dir": folder / which, "--srcdict": folder / f"{which}.dict", "--dest": out}
    return ["--overwrite", "--workers", str(workers), *(str(word) for pair in flags.items() for word in pair)]


COMMANDS = {
    "corpus": Command("corpus", "fairseq.cli.preprocess", _corpus_words, "train.idx", 15),
    "task": Command("task", "fairseq.cli.preprocess_task", _task_words, "input0", 36),
}


def write_sources(folder: Path, megabytes: float) -> None:
    """Two sets of text with a dictionary each; the words of the one are not those of the other."""
    for which in ("old", "new"):
        words = [f"{which}{number}" for number in range(500)]
        rng = random.Random(which)
        lines = [" ".join(rng.choices(words, k=12)) + "\n" for _ in range(int(megabytes * 1e6 / 80))]
        (folder / f"{which}.txt").write_text("".join(lines))
        (folder / f"{which}.valid").write_text("".join(lines[: len(lines) // 4]))
        (folder / f"{which}.dict").write_text("".join(f"{word} 1\n" for word in words))
        (folder / which).mkdir()
        for column in ("train.raw.input0", "train.raw.input1"):
            (folder / which / column).write_text("".join(lines))
        (folder / which / "train.label").write_text("".join(f"{which}{len(line) % 3}\n" for line in lines))


def content(directory: Path) -> dict[str, bytes]:
    """The data in ``directory``, without logs and manifests."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "manifest.json" and path.suffix != ".log"
    }


class Attempt:
    """One fault and what became of it; ``failures`` are sentences."""

    def __init__(self, command: Command, fault: str, folder: Path, rng: random.Random, seconds: float) -> None:
        self.command, self.fault, self.folder, self.rng, self.seconds = command, fault, folder, rng, seconds
        self.workers = 3 if fault == "kill a worker" else rng.choice((1, 3))
        self.failures: list[str] = []
        self.outcome, self.met = "", False

    def run(self, place: Path) -> None:
        out = place / "out"
        shutil.copytree(self.command.made(self.folder, "old"), out)
        status, said = self._with_fault(out)
        self.met = status != 0
        self._check_end(status, said)
        self.outcome = self._state(out)
        left = [path for path in place.rglob("*") if ".preprocess-" in path.name]
        done = subprocess.run(self._command(out), env=environment(), capture_output=True, text=True, timeout=PATIENCE)
        told = done.stdout + done.stderr
        if done.returncode or content(out) != content(self.command.made(self.folder, "new")):
            self.failures.append(f"the next run failed with {done.returncode}: {told[-500:]}")
        if left and "had left" not in told:
            self.failures.append(f"the next run did not say that it removed {left[0].name}")
        hidden = [path.name for path in place.rglob(".*")]
        if hidden:
            self.failures.append(f"the next run left {', '.join(hidden)}")
        problems = [problem for report in _reports(out) for problem in report]
        if problems:
            self.failures.append(f"after the next run: {problems[0]}")

    def _command(self, out: Path, last: int | None = None) -> list[str]:
        words = self.command.words("new", self.folder, out, self.workers)
        if last is None:
            return [sys.executable, "-m", self.command.module, *words]
        return [sys.executable, "-c", _CHILD, str(last), self.command.module, *words]

    def _with_fault(self, out: Path) -> tuple[int | None, str]:
        """(status, what was said) of a run that meets the fault; status None: it did not end."""
        last = self.rng.randrange(1, self.command.renames) if self.fault == "kill at a rename" else None
        room = self.rng.randrange(20_000, 400_000) if self.fault == "no room" else None

        def limit() -> None:
            if room is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

        with tempfile.TemporaryFile() as output:
            child = subprocess.Popen(
                self._command(out, last),
                env=environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=limit,
            )
            try:
                self._strike(child)
                status = child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.failures.append(f"it has not ended after {PATIENCE:g} s")
                status = None
            finally:
                self._no_one_left(child.pid)
            output.seek(0)
            return status, output.read().decode(errors="replace")

    def _strike(self, child: subprocess.Popen[bytes]) -> None:
        if self.fault in SIGNALS:
            time.sleep(self.rng.uniform(0, self.seconds))
            if child.poll() is None:
                child.send_signal(SIGNALS[self.fault])
        elif self.fault == "kill a worker":
            workers: list[int] = []
            while not workers and child.poll() is None:
                workers = [process for process in session(child.pid) if process != child.pid]
                time.sleep(0.002)
            time.sleep(self.rng.uniform(0, 0.03 * self.seconds))
            workers = [process for process in session(child.pid) if process != child.pid]
            if workers:
                self._end(self.rng.choice(workers))

    def _no_one_left(self, leader: int) -> None:
        end = time.monotonic() + 15
        while (there := session(leader)) and time.monotonic() < end:
            time.sleep(0.05)
        if there:
            self.failures.append(f"{len(there)} processes are left")
            for process in there:
                self._end(process)

    @staticmethod
    def _end(process: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)

    def _check_end(self, status: int | None, said: str) -> None:
        number = SIGNALS.get(self.fault, signal.SIGKILL)
        # -number: before the command has begun, or as Python ends when it is interrupted while it starts
        usual = {0, -number, 128 + number} if self.fault in SIGNALS else {0, 2}
        if self.fault == "kill at a rename":
            usual = {0, -signal.SIGKILL}
        began = "error:" in said
        if status not in usual and not (self.fault == "interrupt" and status == 1 and not began):
            self.failures.append(f"status {status}: {said[-500:]}")
        elif "Traceback" in said and not (self.fault == "interrupt" and not began):
            self.failures.append(f"a traceback: {said[-1500:]}")
        elif status == 2 and "\n" not in said.strip()[said.strip().rfind("error: ") :]:
            expected = "was ended by SIGKILL" if self.fault == "kill a worker" else "File too large"
            if expected not in said:
                self.failures.append(f"not the sentence that was expected: {said[-500:]}")

    def _state(self, out: Path) -> str:
        """``old``, ``new`` or ``none``."""
        if not (out / self.command.first).exists():
            return "none"
        now = content(out)
        visible = {name: data for name, data in now.items() if not any(part[0] == "." for part in Path(name).parts)}
        for which in ("old", "new"):
            if visible == content(self.command.made(self.folder, which)):
                problems = [problem for report in _reports(out) for problem in report]
                if problems:
                    self.failures.append(f"it can be read, but: {problems[0]}")
                return which
        if self.command.name == "corpus" and not (out / "valid.idx").exists():
            new = content(self.command.made(self.folder, "new"))
            if visible == {name: new[name] for name in visible}:
                return "none"  # the validation set is still to come, and all that is there is new
        self.failures.append(f"neither old nor new: {sorted(visible)}")
        return "mixed"


def _reports(out: Path) -> Iterator[list[str]]:
    for folder in data_folders(out):
        yield check_folder(folder, lambda count: None).problems


def session(leader: int) -> list[int]:
    """The processes of a session that are no zombies."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                state, _, _, its = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()[:4]
            except (OSError, IndexError):
                continue
            if int(its) == leader and state != "Z":
                found.append(int(entry))
    return found


def prepare(folder: Path, names: list[str], megabytes: float) -> dict[str, float]:
    """Write the sources and the data of both sets; returns the seconds that each command takes."""
    write_sources(folder, megabytes)
    seconds = {}
    for name in names:
        command = COMMANDS[name]
        for which in ("old", "new"):
            words = command.words(which, folder, command.made(folder, which), 3)
            started = time.monotonic()
            subprocess.run(
                [sys.executable, "-m", command.module, *words], env=environment(), check=True, capture_output=True
            )
            seconds[name] = time.monotonic() - started
    return seconds


def attempts(
    count: int, seed: int = 0, names: list[str] | None = None, faults: tuple[str, ...] = FAULTS, megabytes: float = 1.0
) -> Iterator[Attempt]:
    """``count`` attempts, which take turns with commands and faults."""
    names = names or list(COMMANDS)
    with tempfile.TemporaryDirectory(prefix="kills-") as directory:
        folder = Path(directory)
        seconds = prepare(folder, names, megabytes)
        for number in range(count):
            rng = random.Random(f"{seed} {number}")
            name, fault = names[number // len(faults) % len(names)], faults[number % len(faults)]
            attempt = Attempt(COMMANDS[name], fault, folder, rng, seconds[name])
            with tempfile.TemporaryDirectory(dir=folder) as place:
                attempt.run(Path(place))
            yield attempt


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.preprocess_kills")
    parser.add_argument("--count", type=int, default=70, help="attempts (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--megabytes", type=float, default=1.0, help="size of the training text (%(default)s)")
    parser.add_argument("--commands", nargs="*", choices=[*COMMANDS], default=[*COMMANDS])
    parser.add_argument("--faults", nargs="*", choices=FAULTS, default=FAULTS)
    args = parser.parse_args(argv)
    outcomes: dict[tuple[str, str], Counter[str]] = {}
    failed = 0
    for attempt in attempts(args.count, args.seed, args.commands, tuple(args.faults), args.megabytes):
        counts = outcomes.setdefault((attempt.command.name, attempt.fault), Counter())
        counts[attempt.outcome] += 1
        counts["too late"] += not attempt.met
        for failure in attempt.failures:
            print(f"{attempt.command.name}, {attempt.fault}, {attempt.workers} workers: {failure}", flush=True)
        failed += bool(attempt.failures)
    columns = ("old", "new", "none", "mixed", "too late")
    print(f"{'':<28}" + "".join(f"{column:>9}" for column in columns))
    for (command, fault), counts in outcomes.items():
        print(f"{command + ', ' + fault:<28}" + "".join(f"{counts[column]:>9}" for column in columns))
    print(f"{args.count} faults, {failed} failures")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
