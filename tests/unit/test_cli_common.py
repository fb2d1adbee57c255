"""How commands end."""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from fairseq.cli.common import run_command
from fairseq.errors import ConfigError
from fairseq.logging.setup import ends_quietly
from tests.common import ROOT


def _raise(error: BaseException) -> None:
    raise error


def test_results_pass_through() -> None:
    assert run_command("fairseq-x", lambda: 3) == 3


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (ConfigError("two\n  lines"), "fairseq-x: error: two lines\n", 2),
        (
            RuntimeError("[cpu] can't allocate memory: you tried to allocate 8 bytes"),
            "fairseq-x: error: too little memory ([cpu] can't allocate memory: you tried to allocate 8 bytes): make the model "
            "(model.*) or the batches smaller\n",
            2,
        ),
        (KeyboardInterrupt(), "fairseq-x: error: interrupted\n", 130),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "data"), "fairseq-x: error: data: Is a directory\n", 2),
        (OSError(errno.ENOSPC, "No space left"), "fairseq-x: error: cannot write the output: No space left\n", 2),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "", 141),
    ],
)
def test_mistakes_end_with_one_line(
    error: BaseException, line: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run_command("fairseq-x", lambda: _raise(error))
    assert caught.value.code == status and capsys.readouterr().err == line


def test_bugs_propagate() -> None:
    for bug in (KeyError("bug"), RuntimeError("bug")):
        with pytest.raises(type(bug)):
            run_command("fairseq-x", lambda bug=bug: _raise(bug))


class Full(io.StringIO):
    """Standard output on a full disk."""

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_output_that_is_lost_at_the_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for main in (lambda: print("answer"), lambda: sys.exit(0)):  # an answer, and --help
        monkeypatch.setattr(sys, "stdout", Full())
        with pytest.raises(SystemExit) as caught:
            run_command("fairseq-x", main)
        assert caught.value.code == 2
        assert capsys.readouterr().err == "fairseq-x: error: cannot write the output: No space left on device\n"


def test_characters_that_an_encoding_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    run_command("fairseq-x", lambda: print("caf\u00e9 \u6f22 \udcff"))
    assert written.getvalue() == rb"caf\xe9 \u6f22 \udcff" + b"\n"


COMMANDS = re.findall(r'^fairseq-\S+ = "(\S+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


@pytest.mark.parametrize("entry", COMMANDS)
def test_every_command_ends_here(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, function = entry.partition(":")
    command = importlib.import_module(module)
    begun: list[str] = []
    monkeypatch.setattr(command, "run_command", lambda program, main: begun.append(program))
    getattr(command, function)()
    assert len(begun) == 1 and begun[0] == "fairseq-" + module.rpartition(".")[2].replace("_", "-")


def test_streams_that_a_caller_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert run_command("fairseq-x", lambda: (print("gone"), sys.stdin.read(), print("gone", file=sys.stderr))[1]) == ""


@pytest.mark.parametrize("failing", ["stream", "file"])
def test_a_log_that_cannot_be_written_ends_alone(failing: str, capfd: pytest.CaptureFixture[str]) -> None:
    handler: logging.Handler = logging.FileHandler("/dev/full")
    if failing == "stream":
        reader, writer = os.pipe()
        os.close(reader)
        handler = logging.StreamHandler(os.fdopen(writer, "w"))
    report: Callable[[Any], Any] = ends_quietly(handler).handleError
    assert ends_quietly(handler).handleError is report
    for number in range(3):
        handler.handle(logging.LogRecord("x", logging.INFO, "", 0, f"line {number}", (), None))
    reason = "Broken pipe" if failing == "stream" else "No space left on device"
    place = "standard output" if failing == "stream" else "/dev/full"
    assert capfd.readouterr().err == f"the log to {place} ends here ({reason}); the run goes on\n"
    handler.flush()  # nothing is left that would fail
