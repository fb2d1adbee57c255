"""Made data for the tests of sentence tasks: words of `tests.common.tiny_dictionary`, in the old layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairseq.data.dictionary import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from tests.common import tiny_dictionary

SIZES: dict[str, Any] = {
    "encoder_layers": 1,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 16,
    "encoder_attention_heads": 2,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


def write_lines(path: Path, lines: Sequence[str], dictionary: Dictionary) -> None:
    """``lines`` at the path prefix, as fairseq-preprocess writes them, beside the dictionary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dictionary.save(str(path.parent / "dict.txt"))
    builder = MMapIndexedDatasetBuilder(f"{path}.bin", dtype=np.uint16)
    for line in lines:
        builder.add_item(torch.tensor([*(dictionary.index(word) for word in line.split()), dictionary.eos()]))
    builder.finalize(f"{path}.idx")


def write_split(
    directory: Path, split: str, inputs: Mapping[str, Sequence[str]], labels: Sequence[str] | None, names: str = "b a"
) -> Path:
    """``inputs`` by name; ``labels`` become class labels of the dictionary ``names``, or a .label file when that is empty."""
    for name, lines in inputs.items():
        write_lines(directory / name / split, lines, tiny_dictionary())
    if labels is not None and names:
        dictionary = Dictionary()
        for name in names.split():
            dictionary.add_symbol(name)
        write_lines(directory / "label" / split, labels, dictionary)
    elif labels is not None:
        (directory / "label").mkdir(exist_ok=True)
        (directory / "label" / f"{split}.label").write_text("".join(f"{label}\n" for label in labels))
    return directory


def every_batch(task: Any, split: str, size: int = 8) -> list[dict[str, Any]]:
    iterator = task.get_batch_iterator(task.dataset(split), max_sentences=size)
    return list(iterator.next_epoch_itr(shuffle=False))


def fit(
    task: Any, criterion: Any, model: Any, batches: Sequence[dict[str, Any]], epochs: int, lr: float = 3e-3
) -> float:
    """Train a few epochs; the accuracy on ``batches`` afterwards."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(epochs):
        for batch in batches:
            optimizer.zero_grad()
            loss, sample_size, _ = criterion(model, batch)
            (loss / sample_size).backward()
            optimizer.step()
    model.eval()
    criterion.eval()
    with torch.no_grad():
        outputs = [criterion(model, batch)[2] for batch in batches]
    return float(sum(o["ncorrect"] for o in outputs) / sum(o["nsentences"] for o in outputs))
