"""Memory of the device: how much is left after an update, and what to say when there is too little."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from fairseq.logging import metrics


def log_free(device: torch.device) -> None:
    """Log the gigabytes that the last update left free."""
    peak = torch.cuda.max_memory_allocated() / 1024**3
    torch.cuda.reset_peak_memory_stats()
    free = torch.cuda.get_device_properties(device).total_memory / 1024**3 - peak
    metrics.log_scalar("gb_free", free, priority=1500, round=1, weight=0)


def shortage(error: BaseException, batch: Any) -> str:
    """What ``batch`` was too large, and what to change."""
    shapes = {tuple(tensor.shape) for tensor in tree_leaves(batch) if torch.is_tensor(tensor) and tensor.dim() > 1}
    return (
        f"out of memory in a batch of {' and '.join(map(str, sorted(shapes)))} ({error}); lower --max-tokens or "
        "--batch-size and raise --update-freq"
    )
