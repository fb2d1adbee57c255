"""Old import path: loading by name, and the encoders as torch-hub modules."""

from __future__ import annotations

import argparse
from typing import Any

from torch import nn

from fairseq.data import encoders
from fairseq.models.hub import load_pretrained

__all__ = ["BPEHubInterface", "TokenizerHubInterface", "from_pretrained"]


def from_pretrained(
    model_name_or_path: str,
    checkpoint_file: str = "model.pt",
    data_name_or_path: str | None = ".",
    archive_map: dict[str, Any] | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """``{"args": configuration, "task": task, "models": models}`` of a checkpoint."""
    loaded = load_pretrained(model_name_or_path, checkpoint_file, data_name_or_path, archive_map, **kwargs)
    return {"args": loaded.cfg, "task": loaded.task, "models": loaded.models}


class BPEHubInterface(nn.Module):
    """A BPE by name with its options: ``encode(text)``, ``decode(pieces)``."""

    def __init__(self, bpe: str, **kwargs: Any) -> None:
        super().__init__()
        self.bpe = encoders.build_bpe(argparse.Namespace(bpe=bpe, **kwargs))

    def encode(self, sentence: str) -> str:
        return self.bpe.encode(sentence)

    def decode(self, sentence: str) -> str:
        return self.bpe.decode(sentence)


class TokenizerHubInterface(nn.Module):
    """A tokenizer by name with its options: ``encode(text)``, ``decode(tokens)``."""

    def __init__(self, tokenizer: str, **kwargs: Any) -> None:
        super().__init__()
        self.tokenizer = encoders.build_tokenizer(argparse.Namespace(tokenizer=tokenizer, **kwargs))

    def encode(self, sentence: str) -> str:
        return self.tokenizer.encode(sentence)

    def decode(self, sentence: str) -> str:
        return self.tokenizer.decode(sentence)
