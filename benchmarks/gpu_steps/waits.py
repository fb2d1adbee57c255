"""Step 3: where one update makes the processor wait for the device, as ``torch.cuda.set_sync_debug_mode`` sees it."""

from __future__ import annotations

import collections
import contextlib
import functools
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from gpu_steps.runs import base_size, make_trainer
from gpu_steps.setting import REPOSITORY, Case, Row, Setting

PRECISIONS = {"fp32": (), "bf16": ("--bf16",), "amp bf16": ("--amp", "--amp-dtype", "bf16")}


def cases(setting: Setting) -> list[Case]:
    return [
        Case(f"{arch}, {precision}", functools.partial(count, setting, arch, flags), least=8)
        for precision, flags in PRECISIONS.items()
        for arch in ("roberta_alibi", "roberta_base")
    ]


def count(setting: Setting, arch: str, flags: tuple[str, ...]) -> Row:
    """Waits of the third update, by the line of this package that waits."""
    size = base_size(setting, setting.size(512, 16), per_update=4096)
    trainer, batches = make_trainer(setting, arch, size, 3, *flags)
    for batch in batches[:2]:
        trainer.train_step([batch])
    setting.synchronize()
    places: collections.Counter[str] = collections.Counter()
    with watching(setting, places):
        trainer.train_step([batches[2]])
    return {"waits": places.total(), "places": dict(places)}


@contextlib.contextmanager
def watching(setting: Setting, places: collections.Counter[str]) -> Iterator[None]:
    """Count every wait in ``places``, under the line of this package that caused it."""

    def note(message: Warning | str, *rest: object, **named: object) -> None:
        if "synchroniz" in str(message):
            places[place()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        if setting.device == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            if setting.device == "cuda":
                torch.cuda.set_sync_debug_mode("default")


def place() -> str:
    """The innermost line of this package on the stack; in the backward pass there may be none."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename.startswith(str(REPOSITORY / "fairseq")):
            return f"{Path(frame.filename).relative_to(REPOSITORY)}:{frame.lineno}"
    return "elsewhere"
