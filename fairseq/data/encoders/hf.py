"""Encoders read by Hugging Face's ``tokenizers``: ``bert``, ``hf_byte_bpe`` and ``hf_tokenizer``."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer, ByteLevelBPETokenizer

from fairseq.data.encoders.base import LITERAL, Ids, flatten, required_file
from fairseq.data.encoders.configs import BertBPEConfig, HuggingFaceByteLevelBPEConfig, HuggingFaceTokenizerConfig
from fairseq.data.encoders.gpt2_bpe_utils import Encoder, get_encoder
from fairseq.data.encoders.offsets import Span
from fairseq.errors import ConfigError, DataError
from fairseq.registry import BPES


class _TokenizersBPE:
    """Symbols are ids written in decimal; sub-classes set ``bpe``, a tokenizer of the library."""

    bpe: Any

    def _encode_batch(self, lines: Sequence[str]) -> list[list[int]]:
        tokenizer = getattr(self.bpe, "_tokenizer", self.bpe)
        encodings = tokenizer.encode_batch_fast(list(lines), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode(self, x: str) -> str:
        return " ".join(map(str, self._encode_batch([x])[0]))

    def decode(self, x: str) -> str:
        """Text of decimal ids; ``<unk>`` and ``<mask>`` are kept as they are."""
        parts: list[str] = []
        ids: list[int] = []
        for token in [*x.split(), None]:
            if token is not None and token not in LITERAL:
                ids.append(int(token))
                continue
            parts.append(self.bpe.decode(ids, skip_special_tokens=False) if ids else "")
            parts.append(token or "")
            ids = []
        return "".join(parts)

    def is_beginning_of_word(self, x: str) -> bool:
        return self.decode(x).startswith(" ")

    @functools.cached_property
    def symbols(self) -> list[str]:
        ids = self.bpe.get_vocab(with_added_tokens=True).values()
        return [str(idx) for idx in range(max(ids, default=-1) + 1)]

    def encode_lines(self, lines: Sequence[str]) -> tuple[Ids, Ids]:
        return flatten(self._encode_batch(lines))

    def encode_with_offsets(self, x: str) -> tuple[list[str], list[Span]]:
        """Ids and the characters of each."""
        encoding = getattr(self.bpe, "_tokenizer", self.bpe).encode(x, add_special_tokens=False)
        return [str(idx) for idx in encoding.ids], encoding.offsets


@BPES.register("hf_byte_bpe", dataclass=HuggingFaceByteLevelBPEConfig)
class HuggingFaceByteLevelBPE(_TokenizersBPE):
    """``vocab.json`` and ``merges.txt`` of a byte-level BPE."""

    def __init__(self, cfg: Any) -> None:
        vocab = required_file(cfg, "bpe_vocab", "hf_byte_bpe")
        merges = required_file(cfg, "bpe_merges", "hf_byte_bpe")
        try:
            self.bpe = ByteLevelBPETokenizer(
                vocab, merges, add_prefix_space=bool(getattr(cfg, "bpe_add_prefix_space", False))
            )
        except Exception as error:  # the library raises plain Exception for malformed files
            raise DataError(f"{vocab} and {merges} are no byte-level BPE: {error}") from None
        self._tables = None if getattr(cfg, "bpe_add_prefix_space", False) else _gpt2_encoder(vocab, merges)

    def encode_lines(self, lines: Sequence[str]) -> tuple[Ids, Ids]:
        return super().encode_lines(lines) if self._tables is None else self._tables.encode_lines(lines)


def _gpt2_encoder(vocab: str, merges: str) -> Encoder | None:
    """The same BPE with GPT-2's look-up tables, several times quicker; None where the two might differ."""
    with open(merges, encoding="utf-8") as handle:
        if not handle.readline().startswith("#version"):
            return None
    encoder = get_encoder(vocab, merges)
    return encoder if all(char in encoder.encoder for char in encoder.byte_encoder.values()) else None


@BPES.register("hf_tokenizer", dataclass=HuggingFaceTokenizerConfig)
class HuggingFaceTokenizer(_TokenizersBPE):
    """One ``tokenizer.json``; special tokens that it would add around a text are left to the dictionary."""

    def __init__(self, cfg: Any) -> None:
        path = required_file(cfg, "hf_tokenizer_file", "hf_tokenizer")
        try:
            self.bpe = Tokenizer.from_file(path)
        except Exception as error:  # as above
            raise DataError(f"{path} is no tokenizer.json: {error}") from None
        self._word_pieces = any(piece.startswith("##") for piece in self.bpe.get_vocab())

    def is_beginning_of_word(self, x: str) -> bool:
        piece = x if x in LITERAL else self.bpe.id_to_token(int(x))
        if piece is None:
            raise DataError(f"{x} is no id of the tokenizer")
        return not piece.startswith("##") if self._word_pieces else piece.startswith(("\u0120", "\u2581", " "))


@BPES.register("bert", dataclass=BertBPEConfig)
class BertBPE:
    """BERT's word pieces; the symbols are the pieces, ``##`` marking those inside a word."""

    def __init__(self, cfg: Any) -> None:
        if not getattr(cfg, "bpe_vocab_file", None):
            raise ConfigError("--bpe bert needs --bpe-vocab-file (setting bpe.bpe_vocab_file): BERT's vocab.txt")
        path = required_file(cfg, "bpe_vocab_file", "bert")
        cased = bool(getattr(cfg, "bpe_cased", False))
        try:
            self.bpe = BertWordPieceTokenizer(path, lowercase=not cased)
        except Exception as error:  # as above
            raise DataError(f"{path} is no word-piece vocabulary: {error}") from None
        by_id = {idx: piece for piece, idx in self.bpe.get_vocab().items()}
        self.symbols = [by_id.get(idx, "") for idx in range(max(by_id, default=-1) + 1)]

    def encode(self, x: str) -> str:
        return " ".join(self.bpe.encode(x, add_special_tokens=False).tokens)

    def decode(self, x: str) -> str:
        """Pieces joined, and the spaces before punctuation and contractions closed up."""
        text = x.replace(" ##", "").strip()
        text = re.sub(r" ([.?!,])", r"\1", text).replace(" ' ", "'")
        return re.sub(r" (n't|'m|'s|'ve|'re)", r"\1", text)

    def is_beginning_of_word(self, x: str) -> bool:
        return not x.startswith("##")

    def encode_lines(self, lines: Sequence[str]) -> tuple[Ids, Ids]:
        encodings = self.bpe._tokenizer.encode_batch_fast(list(lines), add_special_tokens=False)
        return flatten([encoding.ids for encoding in encodings])

    def encode_with_offsets(self, x: str) -> tuple[list[str], list[Span]]:
        """Pieces and the characters of each."""
        encoding = self.bpe.encode(x, add_special_tokens=False)
        return encoding.tokens, encoding.offsets
