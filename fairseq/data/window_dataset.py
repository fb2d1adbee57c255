"""What data sets have in common whose items are inputs cut from a source, one special symbol at each end or more.

Legend: B batch, T tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fairseq.data.collating import collate_tokens
from fairseq.data.fairseq_dataset import FairseqDataset


class WindowDataset(FairseqDataset):
    """Items have ``id`` and ``source`` (T); ``sizes`` holds the tokens of each, ``name`` is the subset's."""

    name: str
    sizes: npt.NDArray[Any]

    def num_tokens(self, index: int) -> int:
        return int(self.sizes[index])

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        return self.sizes[indices]

    def size(self, index: int) -> int:
        return int(self.sizes[index])

    def batch(self, samples: list[dict[str, Any]], pad: int) -> dict[str, Any]:
        """``{"id" (B), "net_input": {"src_tokens" (B, T), "src_lengths" (B)}, "subset", "nsentences", "ntokens"}``."""
        lengths = torch.tensor([len(sample["source"]) for sample in samples])
        return {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "net_input": {
                "src_tokens": collate_tokens([sample["source"] for sample in samples], pad),
                "src_lengths": lengths,
            },
            "subset": self.name,
            "nsentences": len(samples),
            "ntokens": int(lengths.sum()),
        }
