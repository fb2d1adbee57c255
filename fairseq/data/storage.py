"""Opening the data of a split: `load_indexed_dataset`, with numbered parts, and small file-name helpers."""

from __future__ import annotations

import itertools
import logging
import os

from fairseq.data.concat_dataset import ConcatDataset
from fairseq.data.dictionary import Dictionary
from fairseq.data.fairseq_dataset import FairseqDataset
from fairseq.data.indexed_dataset import infer_dataset_impl, make_dataset

# The name under which the original logs, so that its lines keep their looks.
logger = logging.getLogger("fairseq.data.data_utils")


def infer_language_pair(path: str) -> tuple[str | None, str | None]:
    """(source, target) from the first file called like ``split.src-tgt.lang`` in the directory ``path``."""
    for filename in sorted(os.listdir(path)):
        parts = filename.split(".")
        if len(parts) >= 3 and len(parts[1].split("-")) == 2:
            source, target = parts[1].split("-")
            return source, target
    return None, None


def load_indexed_dataset(
    path: str,
    dictionary: Dictionary | None = None,
    dataset_impl: str | None = None,
    combine: bool = False,
    default: str = "cached",
) -> FairseqDataset | None:
    """The data set at the path prefix ``path``; with ``combine`` also ``path1``, ``path2``, ... in one.

    ``dictionary`` is needed by plain text only. The kind is ``dataset_impl``, or read off the files, or ``default``.
    Returns None when there is nothing at ``path``. Raises DataError for damaged files.
    """
    parts: list[FairseqDataset] = []
    for k in itertools.count():
        path_k = path + (str(k) if k > 0 else "")
        impl = dataset_impl or infer_dataset_impl(path_k) or default
        part = make_dataset(path_k, impl=impl, fix_lua_indexing=True, dictionary=dictionary)
        if part is None:
            break
        logger.info("loaded %s examples from: %s", f"{len(part):,}", path_k)
        parts.append(part)
        if not combine:
            break
    if len(parts) <= 1:
        return parts[0] if parts else None
    return ConcatDataset(parts)
