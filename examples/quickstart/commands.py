"""Runs fairseq's commands: each is shown, its log goes to a file, and a long training tells how it is getting on."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| ")
STATISTICS = re.compile(r"\| train_inner \| (\{.*\})$")
SECONDS_BETWEEN_LINES = 10


def command_line(name: str, arguments: list[str]) -> list[str]:
    """The command line of ``fairseq-<name>``: the installed script, or the module where it is not installed."""
    script = Path(sys.executable).parent / f"fairseq-{name}"
    start = [str(script)] if script.exists() else [sys.executable, "-m", "fairseq.cli." + name.replace("-", "_")]
    return [*start, *arguments]


def for_the_shell(words: list[str], width: int = 118) -> str:
    """The words as one command to paste, over several lines."""
    lines = ["$"]
    for word in map(shlex.quote, words):
        if len(lines[-1]) + len(word) > width:
            lines.append("   ")
        lines[-1] += " " + word
    return " \\\n".join(lines)


def show(line: str) -> None:
    print(line, flush=True)


def answers(line: str, tell: Callable[[str], None] = show) -> None:
    """Pass on what a command answers, without its log lines."""
    if not LOG_LINE.match(line):
        tell(line)


def run(log: Path, name: str, *arguments: object, see: Callable[[str], None] = answers, quiet: bool = False) -> None:
    """Run a command and give each line of its output to ``see``; everything goes to the end of the file ``log``.

    The command is shown unless ``quiet``. When it fails so does the quickstart, with the last lines of the log.
    """
    words = list(map(str, arguments))
    shown = for_the_shell([f"fairseq-{name}", *words])
    if not quiet:
        print(f"\n{shown}", flush=True)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with log.open("a", encoding="utf-8") as file:
        print(f"\n{shown}", file=file, flush=True)
        child = subprocess.Popen(
            command_line(name, words),
            env={**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=file,
            encoding="utf-8",
        )
        with child:
            assert child.stdout is not None  # it is a pipe
            for line in child.stdout:
                print(line, end="", file=file, flush=True)
                see(line.rstrip("\n"))
    if child.returncode:
        print("".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[-15:]), file=sys.stderr)
        sys.exit(f"quickstart: fairseq-{name} ended with exit code {child.returncode}; its whole output is in {log}")


def statistics(line: str) -> dict[str, Any] | None:
    """The figures in a line of a training with ``--log-format json``, if there are any."""
    found = STATISTICS.search(line)
    return json.loads(found[1]) if found else None


class Speed:
    """Updates a second, seen from the lines of a training."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def __call__(self, line: str) -> None:
        if figures := statistics(line):
            self.rates.append(max(0.001, float(figures["ups"])))

    def mean(self) -> float:
        """Without the first updates, which also warm up."""
        rates = self.rates[3:] or self.rates
        return len(rates) / sum(1 / rate for rate in rates)


class Progress:
    """Short lines from those of a training: one every few seconds, on a terminal and in a file alike."""

    def __init__(self, updates: int) -> None:
        self.updates = updates
        self.done = 0
        self.out_of_time = False
        self._begin: tuple[int, float] | None = None  # the first update seen, and when: its own time is start-up
        self._shown = 0.0

    def __call__(self, line: str) -> None:
        self.out_of_time |= "> stop_time_hours" in line
        if not (figures := statistics(line)):
            return
        self.done, now = int(figures["num_updates"]), time.perf_counter()
        if self._begin is None:
            self._begin, self._shown = (self.done, now), now
        elif now - self._shown >= SECONDS_BETWEEN_LINES or self.done == self.updates:
            self._shown = now
            speed = (self.done - self._begin[0]) / (now - self._begin[1])
            print(
                f"  update {self.done} of {self.updates}   loss {float(figures['loss']):.2f} bits"
                f"   {speed:.2g} updates per second   {duration((self.updates - self.done) / speed)} left",
                flush=True,
            )


def duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"
