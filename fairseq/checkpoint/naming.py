"""Names of checkpoint files, and how they are found again."""

from __future__ import annotations

import os
import re

from fairseq.rng import legacy_generator


def last_name(suffix: str = "") -> str:
    return f"checkpoint_last{suffix}.pt"


def best_name(suffix: str = "") -> str:
    return f"checkpoint_best{suffix}.pt"


def epoch_name(epoch: int, suffix: str = "") -> str:
    return f"checkpoint{epoch}{suffix}.pt"


def update_name(epoch: int, updates: int, suffix: str = "") -> str:
    return f"checkpoint_{epoch}_{updates}{suffix}.pt"


def epoch_pattern(suffix: str = "") -> str:
    """Matches `epoch_name`; group 1 is the epoch."""
    return rf"checkpoint(\d+){re.escape(suffix)}\.pt"


def update_pattern(suffix: str = "") -> str:
    """Matches `update_name`; group 1 is the number of updates."""
    return rf"checkpoint_\d+_(\d+){re.escape(suffix)}\.pt"


def kept_best_pattern(metric: str, suffix: str = "") -> str:
    """Matches `kept_best_name`; group 1 is the value of ``metric`` with the tie-breaking digit appended."""
    return rf"checkpoint\.best_{re.escape(metric)}_(-?\d+\.\d{{3}}\d+){re.escape(suffix)}\.pt"


def kept_best_name(
    metric: str, value: float, epoch: int, updates: int, keep: int, taken: set[str], suffix: str = ""
) -> str:
    """Name among the ``keep`` best by ``metric``: three decimals and one digit that breaks ties.

    The digit is the original's seeded draw; if that name is taken, the next free digit, so that no kept file is lost.
    """
    draw = int(legacy_generator(epoch, updates, hash(float(value))).randint(0, keep))
    names = [f"checkpoint.best_{metric}_{value:.3f}{(draw + i) % 10}{suffix}.pt" for i in range(10)]
    return next((name for name in names if name not in taken), names[0])


def kept_value(path: str, metric: str, suffix: str = "") -> float:
    """The value in `kept_best_name`, to three decimals."""
    match = re.fullmatch(kept_best_pattern(metric, suffix), os.path.basename(path))
    if match is None:
        raise ValueError(f"{path} is no name of a best checkpoint by {metric}")
    return float(re.match(r"-?\d+\.\d{3}", match.group(1)).group())  # type: ignore[union-attr]


def checkpoint_paths(path: str, pattern: str = r"checkpoint(\d+)\.pt", keep_match: bool = False) -> list:
    """Files in directory ``path`` whose whole name matches ``pattern``, by the number in its first group, descending.

    With ``keep_match``: (file, number) pairs.
    """
    regex = re.compile(pattern)
    entries = []
    for i, name in enumerate(sorted(os.listdir(path)) if os.path.isdir(path) else []):
        match = regex.fullmatch(name)
        if match is not None:
            entries.append((float(match.group(1)) if match.groups() else float(i), name))
    entries.sort(reverse=True)
    return [(os.path.join(path, name), number) if keep_match else os.path.join(path, name) for number, name in entries]
