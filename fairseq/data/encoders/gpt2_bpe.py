"""``--bpe gpt2``: GPT-2's byte-level BPE; its symbols are ids written in decimal."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from fairseq.data.encoders.base import LITERAL, Ids, required_file
from fairseq.data.encoders.configs import GPT2BPEConfig
from fairseq.data.encoders.gpt2_bpe_utils import Encoder, get_encoder
from fairseq.data.encoders.offsets import Span, byte_spans
from fairseq.registry import BPES

__all__ = ["GPT2BPE", "get_encoder"]


@BPES.register("gpt2", dataclass=GPT2BPEConfig)
class GPT2BPE:
    """Text to space-joined decimal ids and back; ``bpe`` is the encoder itself."""

    def __init__(self, cfg: Any) -> None:
        self.bpe: Encoder = get_encoder(
            required_file(cfg, "gpt2_encoder_json", "gpt2"), required_file(cfg, "gpt2_vocab_bpe", "gpt2")
        )

    def encode(self, x: str) -> str:
        return " ".join(map(str, self.bpe.encode(x)))

    def encode_batch(self, lines: Iterable[str]) -> list[str]:
        return [self.encode(line) for line in lines]

    def decode(self, x: str) -> str:
        """Raises ValueError for a word that is neither a known id nor ``<unk>`` or ``<mask>``."""
        return self.bpe.decode([token if token in LITERAL else int(token) for token in x.split()])

    def is_beginning_of_word(self, x: str) -> bool:
        return self.decode(x).startswith(" ")

    @functools.cached_property
    def symbols(self) -> list[str]:
        """Dictionary symbol of each id."""
        return [str(idx) for idx in range(max(self.bpe.decoder, default=-1) + 1)]

    def encode_lines(self, lines: Sequence[str]) -> tuple[Ids, Ids]:
        return self.bpe.encode_lines(lines)

    def encode_with_offsets(self, x: str) -> tuple[list[str], list[Span]]:
        """Ids and the characters of each: every character of a piece is one byte of the text."""
        ids = self.bpe.encode(x)
        return [str(idx) for idx in ids], byte_spans([len(self.bpe.decoder[idx]) for idx in ids], x)
