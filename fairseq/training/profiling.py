"""A trace of a few updates (``--profile``), for TensorBoard's profiler page, Perfetto or ``chrome://tracing``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler

from fairseq.logging.setup import TRAIN_LOGGER

if TYPE_CHECKING:
    from fairseq.dataclass.configs import FairseqConfig

logger = logging.getLogger(TRAIN_LOGGER)

SKIPPED = 4
"""Updates before the trace: libraries load, memory grows, the learning rate leaves zero."""
WARM_UP = 1
"""Updates during which the profiler runs and its records are thrown away."""
RECORDED = 3


class Stepping(Protocol):
    """Is told when an update is over."""

    def step(self) -> None: ...


class _Nothing:
    def step(self) -> None:
        pass


NOTHING = _Nothing()


@contextmanager
def traced_updates(cfg: FairseqConfig, cuda: bool) -> Iterator[Stepping]:
    """Call ``step`` after every update; with ``common.profile`` a few of them are recorded and the file is logged.

    The trace is written below ``tensorboard_logdir`` if that is set, otherwise below ``save_dir``, in ``profile``.
    """
    if not cfg.common.profile:
        yield NOTHING
        return
    directory = Path(cfg.common.tensorboard_logdir or cfg.checkpoint.save_dir) / "profile"
    write = tensorboard_trace_handler(str(directory))

    def ready(finished: profile) -> None:
        write(finished)
        logger.info("profile: a trace of %d updates is in %s (tensorboard, or ui.perfetto.dev)", RECORDED, directory)
        order = "self_device_time_total" if cuda else "self_cpu_time_total"
        logger.info("profile:\n%s", finished.key_averages().table(sort_by=order, row_limit=20))

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    plan = schedule(skip_first=SKIPPED, wait=0, warmup=WARM_UP, active=RECORDED, repeat=1)
    needed = SKIPPED + WARM_UP + RECORDED
    logger.info("profile: recording updates %d to %d of this run", needed - RECORDED + 1, needed)
    with profile(activities=activities, schedule=plan, on_trace_ready=ready, record_shapes=True) as recorder:
        yield recorder
    if recorder.step_num < needed:
        logger.warning(
            "profile: there is no trace: the run ended after %d updates, and %d are needed", recorder.step_num, needed
        )
