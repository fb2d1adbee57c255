"""Collating, filtering and batching helpers, and the check for forgotten validation files (old path of all of them)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

from fairseq.data.collating import collate_tokens, lengths_to_mask, lengths_to_padding_mask
from fairseq.data.sizing import batch_by_size, filter_by_size, filter_by_size_dynamic
from fairseq.data.storage import infer_language_pair, load_indexed_dataset
from fairseq.data.text import post_process
from fairseq.errors import ConfigError
from fairseq.rng import numpy_seed

__all__ = [
    "batch_by_size",
    "collate_tokens",
    "filter_by_size",
    "filter_by_size_dynamic",
    "infer_language_pair",
    "lengths_to_mask",
    "lengths_to_padding_mask",
    "load_indexed_dataset",
    "numpy_seed",
    "post_process",
    "raise_if_valid_subsets_unintentionally_ignored",
    "split_paths",
]


def split_paths(paths: str, separator: str = os.pathsep) -> list[str]:
    """Data directories in ``paths``: separated by ``:``, or by ``|`` when a ``://`` address is among them."""
    return paths.split("|") if "://" in paths else paths.split(separator)


def _extra_valid_roots(directories: Iterable[str]) -> set[str]:
    """Names like ``valid1`` of which a data directory holds files (the original's pattern, literally)."""
    names = (name for directory in directories if os.path.isdir(directory) for name in os.listdir(directory))
    return {os.path.splitext(name)[0] for name in names if re.match(r"valid*[0-9].*", name)}


def raise_if_valid_subsets_unintentionally_ignored(train_cfg: Any) -> None:
    """Raise ConfigError when the data directories hold ``valid1``, ... that ``valid_subset`` does not name.

    ``train_cfg`` has sections ``dataset`` and ``task``. ``ignore_unused_valid_subsets``, ``combine_valid_subsets``,
    ``disable_validation`` or a task without data say that it is meant.
    """
    dataset = train_cfg.dataset
    if dataset.disable_validation or dataset.ignore_unused_valid_subsets or dataset.combine_valid_subsets:
        return
    data = getattr(train_cfg.task, "data", None)
    if not data:
        return
    ignored = _extra_valid_roots(split_paths(data)) - set(dataset.valid_subset.split(","))
    if ignored:
        raise ConfigError(
            f"valid paths {sorted(ignored)} were found in {data} but will be ignored: combine them with --combine-val, "
            "name them in --valid-subset, or pass --ignore-unused-valid-subsets"
        )
