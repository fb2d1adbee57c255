"""Handlers of signals stand for a block, and a run that was interrupted hands them on."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from fairseq.dataclass.configs import DistributedTrainingConfig
from fairseq.distributed import placement
from fairseq.ending import ENDING, INTERRUPTED, handling

OUTER: list[str] = []


@pytest.fixture(autouse=True)
def outer() -> Iterator[None]:
    """Handlers of somebody else, for all but SIGHUP, which is ignored."""
    OUTER.clear()
    before = {name: signal.signal(getattr(signal, name), told) for name in ENDING}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


def told(number: int, frame: object) -> None:
    OUTER.append(signal.Signals(number).name)


def interrupted(status: int | None) -> list[str]:
    inner: list[str] = []
    names = dict.fromkeys(ENDING, lambda number, frame: inner.append(signal.Signals(number).name))
    try:
        with handling(names):
            for number in (signal.SIGUSR2, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2):
                signal.raise_signal(number)
            assert not OUTER
            if status is not None:
                raise SystemExit(status)
    except SystemExit as end:
        assert end.code == status
    return inner


def test_handed_on_after_an_interruption_and_only_then() -> None:
    assert interrupted(INTERRUPTED) == ["SIGUSR2", "SIGTERM", "SIGUSR2"]
    assert OUTER == ["SIGUSR2", "SIGTERM"]
    OUTER.clear()
    for status in (None, 1):
        interrupted(status)
    assert not OUTER and signal.getsignal(signal.SIGTERM) is told


def test_a_process_that_ends_keeps_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM and torchrun end all processes as soon as one of them has ended with a status."""
    heard = []

    def stop(cfg: object) -> None:
        raise SystemExit(INTERRUPTED)

    monkeypatch.setattr(placement, "distributed_init", lambda cfg: None)
    monkeypatch.setattr(placement, "watched", lambda seconds: contextlib.nullcontext())
    monkeypatch.setattr(placement, "leave", lambda: heard.append(signal.getsignal(signal.SIGTERM)))
    cfg = SimpleNamespace(distributed_training=DistributedTrainingConfig())
    with pytest.raises(SystemExit):
        placement.run_rank(cfg, placement.Placement(size=2, address="env://"), stop, {})
    assert heard == [signal.SIG_IGN]
