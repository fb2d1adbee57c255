"""``map_in_order`` when things go wrong, and with items and answers of any size."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from fairseq.data.pool import map_in_order
from fairseq.errors import DataError, WorkerError


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_order_and_sizes(size: int) -> None:
    items = [bytes([number]) * size for number in range(30)]

    def answer(item: bytes) -> bytes:
        time.sleep(0.01 * (item[0] % 3))
        return item * 2

    assert list(map_in_order(answer, items, 3)) == [item * 2 for item in items]
    assert list(map_in_order(answer, (item for item in items), 2)) == [item * 2 for item in items]


def test_few_items_are_on_their_way() -> None:
    given = []

    def items():  # type: ignore[no-untyped-def]
        for number in range(1000):
            given.append(number)
            yield number

    for _, _ in zip(range(3), map_in_order(abs, items(), 2), strict=False):
        assert len(given) < 3 + 4 * 2 + 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_is_a_sentence(number: signal.Signals) -> None:
    def work(item: int) -> bytes:
        if item == 5:
            os.kill(os.getpid(), number)
        return bytes(1_000_000)

    with pytest.raises(WorkerError, match=f"a worker process was ended by {number.name}") as caught:
        list(map_in_order(work, range(20), 3))
    assert ("too little memory" in str(caught.value)) == (number is signal.SIGKILL)


def test_signals_of_a_terminal_are_for_the_parent() -> None:
    def work(item: int) -> int:
        for number in (signal.SIGINT, signal.SIGHUP):
            os.kill(os.getpid(), number)
        return item

    assert list(map_in_order(work, range(4), 2)) == [0, 1, 2, 3]


class Odd(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} {two}")


def test_errors_of_workers() -> None:
    def work(item: int) -> object:
        if item == 1:
            raise DataError("line 7 is wrong")
        if item == 2:
            raise Odd(1, 2)  # cannot be made again from its pickle
        return lambda: item  # cannot be pickled

    with pytest.raises(DataError, match="^line 7 is wrong$"):
        list(map_in_order(work, [1, 1], 2))
    with pytest.raises(RuntimeError, match="^Odd: 1 2$") as caught:
        list(map_in_order(work, [2, 2], 2))
    assert "in work" in str(caught.value.__cause__)
    with pytest.raises(Exception, match="pickle"):
        list(map_in_order(work, [0, 0], 2))


def test_nobody_is_left(tmp_path: Path) -> None:
    def work(item: int) -> int:
        (tmp_path / str(os.getpid())).touch()
        return item

    numbers = map_in_order(work, range(100), 2)
    next(numbers)
    numbers.close()  # type: ignore[attr-defined]
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert workers and not any(Path(f"/proc/{worker}").exists() for worker in workers)
