"""Nothing is kept from one epoch to the next: objects and allocated memory are counted, with shards that take turns.

`benchmarks/memory.py` reads the memory of whole processes over many epochs.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fairseq.tasks.configs import MaskedLMConfig
from fairseq.tasks.masked_lm import MaskedLMTask
from tests.common import tiny_data_bin

SENTENCES = 1000
KEPT = 4000  # bytes an epoch, for the interpreter's own; the order of the samples has twice as many


def read_epochs(task: Any, epochs: range, sharded: bool) -> None:
    """As the training loop does it: shards are loaded anew, and their batches are not remembered."""
    for epoch in epochs:
        if sharded or epoch == 1:
            task.load_dataset("train", epoch=epoch)
        batches = task.get_batch_iterator(
            task.dataset("train"), max_tokens=2000, seed=1, epoch=epoch, disable_iterator_cache=sharded
        )
        assert sum(1 for _ in batches.next_epoch_itr()) > 1


def held() -> int:
    """Bytes that Python and numpy hold."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def live() -> Counter[str]:
    """Objects by their kind."""
    gc.collect()
    return Counter(type(item).__qualname__ for item in gc.get_objects())


def growth(task: Any, sharded: bool) -> tuple[float, dict[str, int]]:
    """Bytes that an epoch leaves behind, and the kinds of which four epochs leave four objects at least."""
    read_epochs(task, range(1, 3), sharded)
    live()  # what is made once is there, by reading and by looking
    tracemalloc.start()
    try:
        read_epochs(task, range(3, 5), sharded)
        before = held()
        read_epochs(task, range(5, 9), sharded)
        size = (held() - before) / 4
    finally:
        tracemalloc.stop()
    kinds = live()
    read_epochs(task, range(9, 13), sharded)
    return size, {kind: number for kind, number in (live() - kinds).items() if number >= 4}


def build(directory: Path, count: int, mode: str, kind: type[MaskedLMTask] = MaskedLMTask) -> MaskedLMTask:
    names = [directory / name for name in "ab"[:count]]
    for seed, name in enumerate(names):
        tiny_data_bin(name, {"train": SENTENCES, "valid": 4}, seed=seed)
    data = ":".join(map(str, names))
    return kind.setup_task(MaskedLMConfig(data=data, seed=1, sample_break_mode=mode, tokens_per_sample=32))


@pytest.mark.parametrize(("count", "mode"), [(1, "eos"), (2, "eos"), (2, "none")])
def test_nothing_is_kept(tmp_path: Path, count: int, mode: str) -> None:
    size, kinds = growth(build(tmp_path, count, mode), count > 1)
    assert size < KEPT and not kinds, kinds


def test_what_is_kept_is_found(tmp_path: Path) -> None:
    class Keeping(MaskedLMTask):
        seen: list[Any] = []

        def load_dataset(self, split: str, epoch: int = 1, **more: Any) -> None:  # type: ignore[override]
            super().load_dataset(split, epoch, **more)
            self.seen.append(self.datasets[split])

    size, kinds = growth(build(tmp_path, 2, "eos", Keeping), True)
    assert size > KEPT and "NumelDataset" in kinds
