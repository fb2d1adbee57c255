"""Does the comparison of `tests.faults.kills` find what it looks for? Mistakes are put in, and each has to be found.

    python -m tests.faults.controls

prints a line of JSON for each: what was left out, and what the comparison says about it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults import warm
from tests.faults.kills import (
    HANG_SECONDS,
    Undisturbed,
    inspect,
    leftovers,
    make_data,
    same_end,
    temporary_files,
    undisturbed,
)
from tests.faults.warm import Strike


@dataclass(frozen=True)
class Mistake:
    """``first`` is done in the run that is killed, ``then`` in the one that goes on with the additional arguments ``words``."""

    words: tuple[str, ...] = ()
    first: Callable[[], None] | None = None
    then: Callable[[], None] | None = None
    strike: Strike = Strike("SIGKILL", 17, ("replace",), "after")


def _forget_dropout() -> None:
    """Random numbers go on from wherever they are."""
    from fairseq.training.trainer import Trainer

    Trainer.set_seed = lambda self: None  # type: ignore[method-assign]


def _forget_moments() -> None:
    from fairseq.optim.fairseq_optimizer import FairseqOptimizer

    FairseqOptimizer.load_state_dict = lambda self, *state: None  # type: ignore[method-assign]


def _forget_average() -> None:
    from fairseq.optim.ema import EMA

    EMA.resume = lambda self, state, model: None  # type: ignore[method-assign]


def _write_in_place() -> None:
    from fairseq.checkpoint import atomic

    atomic.temporary_name = lambda target: target  # type: ignore[assignment]


def _keep_temporary_files() -> None:
    from fairseq.checkpoint import store

    store.remove_leftovers = lambda directory: None  # type: ignore[assignment]


MOST = 8  # complaints that are shown of one
IN_A_WRITE = Strike("SIGKILL", 300, ("write",), "half")
MISTAKES = {
    "nothing": Mistake(),
    "position in the data": Mistake(("--reset-dataloader",)),
    "optimizer": Mistake(then=_forget_moments),
    "seed": Mistake(("--seed", "8")),
    "random numbers": Mistake(then=_forget_dropout),
    "average of the weights": Mistake(then=_forget_average),
    "files that appear at once": Mistake(first=_write_in_place, strike=IN_A_WRITE),
    "temporary files are removed": Mistake(then=_keep_temporary_files, strike=IN_A_WRITE),
}


def found(mistake: Mistake, case: Undisturbed, folder: Path) -> Iterator[str]:
    """What the comparison says."""
    folder.mkdir()
    first = warm.start(case.words, folder, mistake.strike, prepare=mistake.first)
    first.wait(HANG_SECONDS)
    complaints, stored, _ = inspect(first, 0, case, folder)
    yield from complaints
    before = temporary_files(folder)
    second = warm.start([*case.words, *mistake.words], folder, prepare=mistake.then)
    second.wait(HANG_SECONDS)
    complaints, _, _ = inspect(second, stored, case, folder)
    yield from complaints
    yield from leftovers(before, temporary_files(folder), second)
    yield from same_end(second, case, folder)


def main() -> int:
    warm.load_all()
    with tempfile.TemporaryDirectory() as folder:
        case = undisturbed("async", make_data(Path(folder)), Path(folder) / "whole")
        for number, (name, mistake) in enumerate(MISTAKES.items()):
            said = list(found(mistake, case, Path(folder) / str(number)))
            print(json.dumps({"without": name, "found": [text[:200] for text in said[:MOST]]}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
