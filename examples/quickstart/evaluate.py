"""How well held-out masks are filled: perplexity and top-5 hits of the model and of the unigram model.

Both answer for the same positions: 15 % of the held-out text, drawn as in training. Only pieces of text count, not the
marks at the ends of paragraphs. The unigram model gives each piece its add-one-smoothed frequency in the training text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairseq.data.indexed_dataset import MMapIndexedDataset

PASSES = 3  # over the held-out text, each with other masks


@dataclass
class Score:
    """Sums over masked positions: negative log-likelihood (nats), hits among the five likeliest, positions."""

    nll: float = 0.0
    hits: int = 0
    count: int = 0

    def add(self, log_probs: torch.Tensor, targets: torch.Tensor) -> None:
        """``log_probs`` (N, V) or (V,) for all positions alike, ``targets`` (N,)."""
        log_probs = log_probs.expand(len(targets), -1)
        self.nll -= float(log_probs.gather(1, targets[:, None]).double().sum())
        self.hits += int((log_probs.topk(5, dim=1).indices == targets[:, None]).any(dim=1).sum())
        self.count += len(targets)

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll / self.count)

    @property
    def top5(self) -> float:
        return self.hits / self.count


def unigram_log_probs(data: Path, dictionary: Any) -> torch.Tensor:
    """Log-probabilities (V,) from the training data; the special symbols get none."""
    corpus = MMapIndexedDataset(str(data / "train"))
    counts = np.bincount(corpus.read_tokens(0, int(corpus.sizes.sum())), minlength=len(dictionary)).astype(np.float64)
    counts += 1
    counts[: dictionary.nspecial] = 0
    return torch.from_numpy(np.log(np.maximum(counts, 1e-30) / counts.sum())).float()


@torch.no_grad()
def held_out(hub: Any, data: Path) -> tuple[Score, Score]:
    """Scores of the model behind ``hub`` and of the unigram model on the subset ``valid``."""
    task, model = hub.task, hub.model
    model.eval()
    unigram = unigram_log_probs(data, task.source_dictionary)
    ours, theirs = Score(), Score()
    for epoch in range(1, PASSES + 1):
        task.load_dataset("valid", epoch=epoch)
        batches = task.get_batch_iterator(task.dataset("valid"), max_sentences=32, seed=1, epoch=epoch)
        for sample in batches.next_epoch_itr(shuffle=False):
            targets = sample["target"]
            asked = targets >= task.source_dictionary.nspecial
            logits, _ = model(**sample["net_input"], masked_tokens=asked)
            ours.add(torch.log_softmax(logits.float(), dim=-1), targets[asked])
            theirs.add(unigram, targets[asked])
    return ours, theirs
