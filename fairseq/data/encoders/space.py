"""``--tokenizer space``: squeeze whitespace."""

from __future__ import annotations

from typing import Any

from fairseq.data.text import SPACE_NORMALIZER
from fairseq.registry import TOKENIZERS


@TOKENIZERS.register("space")
class SpaceTokenizer:
    """Every run of whitespace becomes one space; decoding changes nothing."""

    def __init__(self, *unused: Any) -> None:
        pass

    def encode(self, x: str) -> str:
        return SPACE_NORMALIZER.sub(" ", x)

    def decode(self, x: str) -> str:
        return x
