"""Encoders that libraries read: ``bert``, ``hf_byte_bpe``, ``hf_tokenizer`` (tokenizers) and ``sentencepiece``."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any

import sentencepiece
from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer, ByteLevelBPETokenizer
from tokenizers.models import WordPiece

from fairseq.data.encoders import albert_text
from fairseq.data.encoders.base import LITERAL, Ids, Span, id_arrays, required_file
from fairseq.data.encoders.configs import (
    BertBPEConfig,
    HuggingFaceByteLevelBPEConfig,
    HuggingFaceTokenizerConfig,
    SentencepieceConfig,
)
from fairseq.data.encoders.gpt2_bpe import Encoder, get_encoder
from fairseq.errors import ConfigError, DataError
from fairseq.registry import BPES


class _TokenizersBPE:
    """Symbols are ids written in decimal; sub-classes set ``bpe``, a tokenizer of the library."""

    bpe: Any

    @property
    def _tokenizer(self) -> Tokenizer:
        return getattr(self.bpe, "_tokenizer", self.bpe)

    @functools.cached_property
    def symbols(self) -> list[str]:
        ids = self.bpe.get_vocab(with_added_tokens=True).values()
        return [str(idx) for idx in range(max(ids, default=-1) + 1)]

    def encode_lines(self, lines: Sequence[str]) -> tuple[Ids, Ids]:
        encodings = self._tokenizer.encode_batch_fast(list(lines), add_special_tokens=False)
        return id_arrays([encoding.ids for encoding in encodings])

    def encode(self, x: str) -> str:
        return " ".join(self.encode_with_offsets(x)[0])

    def encode_with_offsets(self, x: str) -> tuple[list[str], list[Span]]:
        """Symbols and the characters of each."""
        encoding = self._tokenizer.encode(x, add_special_tokens=False)
        return [self.symbols[idx] for idx in encoding.ids], encoding.offsets

    def decode(self, x: str) -> str:
        """Text of decimal ids; ``<unk>`` and ``<mask>`` are kept as they are."""
        parts: list[str] = []
        for literal, tokens in itertools.groupby(x.split(), LITERAL.__contains__):
            if literal:
                parts += tokens
            else:
                parts.append(self.bpe.decode([int(token) for token in tokens], skip_special_tokens=False))
        return "".join(parts)

    def is_beginning_of_word(self, x: str) -> bool:
        return self.decode(x).startswith(" ")


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
            raise DataError(f"{vocab} and {merges} are not byte-level BPE: {error}") from None
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
    """One ``tokenizer.json``; special tokens that it would add around a text are left to the dictionary.

    Its truncation and padding are switched off: lengths are up to who makes the batches.
    """

    def __init__(self, cfg: Any) -> None:
        path = required_file(cfg, "hf_tokenizer_file", "hf_tokenizer")
        try:
            self.bpe = Tokenizer.from_file(path)
        except Exception as error:  # as above
            raise DataError(f"{path} is not a valid tokenizer.json: {error}") from None
        self.bpe.no_truncation()
        self.bpe.no_padding()
        self.word_pieces = isinstance(self.bpe.model, WordPiece)

    def is_beginning_of_word(self, x: str) -> bool:
        piece = x if x in LITERAL else self.bpe.id_to_token(int(x))
        if piece is None:
            raise DataError(f"{x} is not an id of the tokenizer")
        return not piece.startswith("##") if self.word_pieces else piece.startswith(("\u0120", "\u2581", " "))


@BPES.register("bert", dataclass=BertBPEConfig)
class BertBPE(_TokenizersBPE):
    """BERT's word pieces; the symbols are the pieces, ``##`` marking those inside a word."""

    mask = "[MASK]"  # how texts for such models spell the mask
    word_pieces = True  # a piece without ## stands apart from what is before it

    def __init__(self, cfg: Any) -> None:
        if not getattr(cfg, "bpe_vocab_file", None):
            raise ConfigError("--bpe bert needs --bpe-vocab-file (setting bpe.bpe_vocab_file): BERT's vocab.txt")
        path = required_file(cfg, "bpe_vocab_file", "bert")
        cased = bool(getattr(cfg, "bpe_cased", False))
        try:
            self.bpe = BertWordPieceTokenizer(path, lowercase=not cased)
        except Exception as error:  # as above
            raise DataError(f"{path} is not a word-piece vocabulary: {error}") from None
        by_id = {idx: piece for piece, idx in self.bpe.get_vocab().items()}
        self.symbols = [by_id.get(idx, "") for idx in range(max(by_id, default=-1) + 1)]

    def decode(self, x: str) -> str:
        """Pieces joined, and the spaces before punctuation and contractions closed up."""
        text = x.replace(" ##", "").strip()
        text = re.sub(r" ([.?!,])", r"\1", text).replace(" ' ", "'")
        return re.sub(r" (n't|'m|'s|'ve|'re)", r"\1", text)

    def is_beginning_of_word(self, x: str) -> bool:
        return not x.startswith("##")


_SPACE = "\u2581"
_SPECIALS = frozenset(("<unk>", "<s>", "</s>", "<pad>"))


@BPES.register("sentencepiece", dataclass=SentencepieceConfig)
class SentencepieceBPE:
    """Text to space-joined pieces and back."""

    def __init__(self, cfg: Any) -> None:
        path = required_file(cfg, "sentencepiece_model", "sentencepiece")
        self.albert = bool(getattr(cfg, "sentencepiece_albert", False))
        self.enable_sampling = bool(getattr(cfg, "sentencepiece_enable_sampling", False))
        alpha = getattr(cfg, "sentencepiece_alpha", None)
        sampling = {"enable_sampling": True} | ({} if alpha is None else {"alpha": alpha})
        self._options: dict[str, Any] = sampling if self.enable_sampling else {}
        self.sp = sentencepiece.SentencePieceProcessor()
        try:
            self.sp.Load(path)
        except (RuntimeError, OSError) as error:
            raise DataError(f"{path} is not a sentencepiece model: {str(error).strip()}") from None
        self.symbols = [self.sp.IdToPiece(idx) for idx in range(len(self.sp))]
        self._index = {piece: idx for idx, piece in enumerate(self.symbols)}

    def encode(self, x: str) -> str:
        if self.albert:
            return " ".join(self.encode_with_offsets(x)[0])
        return " ".join(self.sp.encode(x, out_type=str, **self._options))

    def decode(self, x: str) -> str:
        return x.replace(" ", "").replace(_SPACE, " ").strip()

    def is_beginning_of_word(self, x: str) -> bool:
        return x in _SPECIALS or x.startswith(_SPACE)

    def encode_lines(self, lines: Sequence[str]) -> tuple[Ids, Ids]:
        """Local ids; a character outside the model is a symbol of its own, as in `encode`, not the unk piece."""
        if self.albert:
            return id_arrays([[self._local(piece) for piece in self.encode_with_offsets(line)[0]] for line in lines])
        rows: list[list[int]] = self.sp.encode(list(lines), out_type=int, num_threads=1, **self._options)
        unk = self.sp.unk_id()
        for i, row in enumerate(rows):
            if unk in row or self.enable_sampling:
                rows[i] = [self._local(piece) for piece in self.encode(lines[i]).split(" ") if piece]
        return id_arrays(rows)

    def encode_with_offsets(self, x: str) -> tuple[list[str], list[Span]]:
        """Pieces and the characters of each, before the model's normalization."""
        if not self.albert:
            return self._encode_with_offsets(x)
        text, places = albert_text.plain_text(x)
        pieces, spans = self._encode_with_offsets(text)
        pieces, spans = albert_text.split_commas(pieces, spans, lambda number: self.sp.encode(number, out_type=str))
        return pieces, albert_text.original_spans(spans, places)

    def _encode_with_offsets(self, x: str) -> tuple[list[str], list[Span]]:
        encode: Any = self.sp.encode
        try:
            found = encode(x, out_type="offset_mapping", **self._options)
        except (ValueError, RuntimeError):  # releases before 0.2.2
            proto = encode(x, out_type="immutable_proto", **self._options)
            return [piece.piece for piece in proto.pieces], [(piece.begin, piece.end) for piece in proto.pieces]
        return found["pieces"], found["offsets"]

    def _local(self, piece: str) -> int:
        if piece not in self._index:
            self._index[piece] = len(self.symbols)
            self.symbols.append(piece)
        return self._index[piece]
