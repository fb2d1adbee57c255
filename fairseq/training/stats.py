"""The numbers that are printed beside the meters: wall time, update count, the best validation value."""

from __future__ import annotations

from typing import Any

from fairseq.logging import metrics


def training_stats(stats: dict[str, Any]) -> dict[str, Any]:
    """``stats`` with ``wall``, the seconds since the run started, last."""
    stats["wall"] = round(metrics.get_meter("default", "wall").elapsed_time, 0)
    return stats


def validation_stats(
    stats: dict[str, Any], num_updates: int, metric: str, best: float | None, maximize: bool
) -> dict[str, Any]:
    """``stats`` with ``num_updates`` and, once there is a ``best`` value so far, the best including this one."""
    stats["num_updates"] = num_updates
    if best is not None and metric in stats:
        stats[f"best_{metric}"] = (max if maximize else min)(best, float(stats[metric]))
    return stats
