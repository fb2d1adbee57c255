"""How commands end."""

from __future__ import annotations

import pytest

from fairseq.cli.common import run_command
from fairseq.errors import ConfigError


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
