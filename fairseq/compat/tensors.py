"""Helpers on tensors and sizes at ``fairseq.utils`` and ``fairseq.data.data_utils`` that only plugins use."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq.errors import DataError

MANIFOLD_PATH_SEP = "|"
multi_tensor_l2norm_available = False


class FileContentsAction(argparse.Action):
    """The value is the text of the file that is named, or else the word itself."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if os.path.isfile(values):
            with open(values, encoding="utf-8") as handle:
                values = handle.read().strip()
        setattr(namespace, self.dest, values)


class CudaEnvironment:
    """What the current CUDA device is, for logs."""

    def __init__(self) -> None:
        device = torch.cuda.current_device()
        properties = torch.cuda.get_device_properties(f"cuda:{device}")
        self.name = properties.name
        self.major, self.minor = properties.major, properties.minor
        self.total_memory_in_GB = properties.total_memory / 1024**3

    @staticmethod
    def pretty_print_cuda_env_list(cuda_env_list: list[CudaEnvironment]) -> None:
        logger = logging.getLogger("fairseq.utils")
        for rank, env in enumerate(cuda_env_list):
            logger.info(
                "rank %3d: capabilities = %2d.%-2d ; total memory = %.3f GB ; name = %s",
                *(rank, env.major, env.minor, env.total_memory_in_GB, env.name),
            )


def buffered_arange(max: int, device: torch.device | str = "cpu") -> Tensor:
    """The integers below ``max``."""
    return torch.arange(max, device=device)


def new_arange(x: Tensor, *size: int) -> Tensor:
    """A tensor of ``size`` (that of ``x``) whose last dimension counts from 0."""
    shape = size or tuple(x.size())
    return torch.arange(shape[-1], device=x.device).expand(*shape).contiguous()


def index_put(tensor: Tensor, indices: Any, value: Any) -> Tensor:
    tensor[indices] = value
    return tensor


def type_as(a: Any, b: Any) -> Any:
    """``a`` in the type and place of ``b``, where both are tensors."""
    return a.to(b) if torch.is_tensor(a) and torch.is_tensor(b) else a


def is_xla_tensor(tensor: Any) -> bool:
    """False: there are no TPUs here."""
    return False


def get_buckets(sizes: Any, num_buckets: int) -> np.ndarray:
    """Lengths such that about as many of ``sizes`` fall to each."""
    buckets = np.percentile(sizes, np.linspace(0, 100, num_buckets + 1)[1:], method="lower")
    return np.unique(buckets)


def get_bucketed_sizes(orig_sizes: Any, buckets: Any) -> np.ndarray:
    """For each size the smallest of ``buckets`` that holds it. Raises DataError for one that is too large."""
    sizes, lengths = np.asarray(orig_sizes), np.asarray(buckets)
    if sizes.size and sizes.max() > lengths.max():
        raise DataError(f"a size of {int(sizes.max())} fits into no bucket (up to {int(lengths.max())})")
    return lengths[np.searchsorted(lengths, sizes, side="left")].astype(sizes.dtype)


def collect_filtered(function: Callable[[Any], bool], iterable: Iterable[Any], filtered: list[Any]) -> Iterator[Any]:
    """As ``filter``; what is left out goes to ``filtered``."""
    for element in iterable:
        if function(element):
            yield element
        else:
            filtered.append(element)


def filter_paired_dataset_indices_by_size(
    src_sizes: Any, tgt_sizes: Any, indices: np.ndarray, max_sizes: Any
) -> tuple[np.ndarray, list[int]]:
    """``indices`` of pairs that fit ``max_sizes`` (a number, or one per side), and the others."""
    if max_sizes is None:
        return indices, []
    limits = (max_sizes, max_sizes) if isinstance(max_sizes, (int, float)) else tuple(max_sizes)
    too_long = np.asarray(src_sizes)[indices] > limits[0]
    if tgt_sizes is not None:
        too_long |= np.asarray(tgt_sizes)[indices] > limits[1]
    return indices[~too_long], indices[too_long].tolist()


def get_mem_usage() -> str:
    """Memory of this process, as text."""
    try:
        import resource
    except ImportError:
        return "N/A"
    return f"used={resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}MB (peak)"
