"""Encoders that libraries read: ``bert``, ``hf_byte_bpe``, ``hf_tokenizer`` (tokenizers) and ``sentencepiece``."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Sequence
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
from fairseq.data.encoders.guard import PROBE, check_charsmaps, check_piece_ids, guarded, load
from fairseq.data.encoders.stored_settings import without_loss, without_mark
from fairseq.errors import ConfigError, DataError
from fairseq.registry import BPES


class _TokenizersBPE:
    """Symbols are ids written in decimal; sub-classes set ``bpe``, a tokenizer of the library, made from ``files``."""

    bpe: Any
    _lost: int | None = None  # see `without_loss`
    files: str = ""

    @property
    def _tokenizer(self) -> Tokenizer:
        return getattr(self.bpe, "_tokenizer", self.bpe)

    @functools.cached_property
    def symbols(self) -> list[str]:
        ids = self.bpe.get_vocab(with_added_tokens=True).values()
        return [str(idx) for idx in range(max(ids, default=-1) + 1)]

    @guarded
    def encode_lines(self, lines: Sequence[str]) -> tuple[Ids, Ids]:
        encodings = self._tokenizer.encode_batch_fast(list(lines), add_special_tokens=False)
        rows = [encoding.ids for encoding in encodings]
        if self._lost is not None:
            for row, line in zip(rows, lines, strict=True):
                self._check_complete(row, line)
        return id_arrays(rows)

    def encode(self, x: str) -> str:
        return " ".join(self.encode_with_offsets(x)[0])

    @guarded
    def encode_with_offsets(self, x: str) -> tuple[list[str], list[Span]]:
        """Symbols and the characters of each."""
        encoding = self._tokenizer.encode(x, add_special_tokens=False)
        self._check_complete(encoding.ids, x)
        return [self.symbols[idx] for idx in encoding.ids], encoding.offsets

    def _check_complete(self, ids: Sequence[int], text: str) -> None:
        if self._lost is not None and self._lost in ids:
            raise DataError(
                f"{self.files} has no piece for a character (or one of its bytes) of the text {text[:40]!r}, and no unknown"
                " token: it would be lost"
            )

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
        prefix = bool(getattr(cfg, "bpe_add_prefix_space", False))
        self.files = f"{vocab} and {merges}"

        def read() -> ByteLevelBPETokenizer:
            with without_mark(vocab) as vocab_file, without_mark(merges) as merges_file:
                return ByteLevelBPETokenizer(vocab_file, merges_file, add_prefix_space=prefix)

        self.bpe = _tokenizer(read, self.files, "are not byte-level BPE")
        found = self._tokenizer
        self.bpe._tokenizer, self._lost = load(lambda: without_loss(found), self.files, "are not byte-level BPE")
        self._tables = None if prefix else _gpt2_encoder(vocab, merges)

    def encode_lines(self, lines: Sequence[str]) -> tuple[Ids, Ids]:
        return super().encode_lines(lines) if self._tables is None else self._tables.encode_lines(lines)


def _tokenizer(read: Callable[[], Any], files: str, what: str) -> Any:
    """A tokenizer of the library that works and whose ids can be the rows of a table."""

    def probe(found: Any) -> None:
        getattr(found, "_tokenizer", found).encode(PROBE, add_special_tokens=False)

    found = load(read, files, what, probe)
    check_piece_ids(found.get_vocab(with_added_tokens=True).values(), files)
    return found


def _gpt2_encoder(vocab: str, merges: str) -> Encoder | None:
    """The same BPE with GPT-2's look-up tables, several times quicker; None where the two might differ."""
    with open(merges, encoding="utf-8-sig") as handle:
        if not handle.readline().startswith("#version"):
            return None
    encoder = get_encoder(vocab, merges)
    return encoder if all(char in encoder.encoder for char in encoder.byte_encoder.values()) else None


@BPES.register("hf_tokenizer", dataclass=HuggingFaceTokenizerConfig)
class HuggingFaceTokenizer(_TokenizersBPE):
    """One ``tokenizer.json``; special tokens that it would add around a text are left to the dictionary."""

    def __init__(self, cfg: Any) -> None:
        self.files = path = required_file(cfg, "hf_tokenizer_file", "hf_tokenizer")
        check_charsmaps(path)

        def read() -> Tokenizer:
            with without_mark(path) as file:
                return Tokenizer.from_file(file)

        what = "is not a valid tokenizer.json"
        self.bpe, self._lost = load(lambda: without_loss(_tokenizer(read, path, what)), path, what)
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
        self.files = path = required_file(cfg, "bpe_vocab_file", "bert")
        cased = bool(getattr(cfg, "bpe_cased", False))

        def read() -> BertWordPieceTokenizer:
            with without_mark(path) as file:
                return BertWordPieceTokenizer(file, lowercase=not cased)

        self.bpe = _tokenizer(read, path, "is not a word-piece vocabulary")
        if "[UNK]" not in self.bpe.get_vocab():
            raise DataError(f"{path} has no line [UNK], which stands for words that the vocabulary lacks")
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
        self.files = path = required_file(cfg, "sentencepiece_model", "sentencepiece")
        self.albert = bool(getattr(cfg, "sentencepiece_albert", False))
        self.enable_sampling = bool(getattr(cfg, "sentencepiece_enable_sampling", False))
        alpha = getattr(cfg, "sentencepiece_alpha", None)
        sampling = {"enable_sampling": True} | ({} if alpha is None else {"alpha": alpha})
        self._options: dict[str, Any] = sampling if self.enable_sampling else {}
        self.sp = sentencepiece.SentencePieceProcessor()

        def read() -> list[str]:
            self.sp.Load(path)
            return [self.sp.IdToPiece(idx) for idx in range(len(self.sp))]

        self.symbols = load(read, path, "is not a sentencepiece model")
        self._index = {piece: idx for idx, piece in enumerate(self.symbols)}

    @guarded
    def encode(self, x: str) -> str:
        if self.albert:
            return " ".join(self.encode_with_offsets(x)[0])
        return " ".join(self.sp.encode(x, out_type=str, **self._options))

    def decode(self, x: str) -> str:
        return x.replace(" ", "").replace(_SPACE, " ").strip()

    def is_beginning_of_word(self, x: str) -> bool:
        return x in _SPECIALS or x.startswith(_SPACE)

    @guarded
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

    @guarded
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
