"""``--bpe gpt2``: GPT-2's byte-level BPE, on the `tokenizers` library, with look-up tables in front of it.

Text is cut into pieces (words with their leading space, numbers, punctuation, whitespace), each piece is written in
an alphabet of 256 printable characters, one per byte, and the best-ranked adjacent pair is merged until none is left.
The symbols of the encoder are the ids of the pieces, written in decimal.

A piece always begins at a space that a non-whitespace character follows, so a line may be cut at such spaces and each
part looked up on its own: almost every part of real text has been seen before. The readable reference implementation,
which does neither, is in the tests.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, models, pre_tokenizers

from fairseq.data.encoders.base import LITERAL, Ids, Span, byte_spans, required_file
from fairseq.data.encoders.configs import GPT2BPEConfig
from fairseq.data.encoders.guard import check_piece_ids, check_text_length, load
from fairseq.data.index_formats import best_fitting_int_dtype
from fairseq.data.text import json_value
from fairseq.errors import DataError, DataNotFoundError, FairseqError
from fairseq.registry import BPES

CACHE_ENTRIES = 1 << 18  # of each table; a full table is emptied, so that memory stays flat
CACHE_LENGTH = 64  # characters; longer parts (text without spaces) hardly repeat

# Unicode White_Space; Python's own \s also holds U+001C to U+001F, which here are ordinary characters.
WHITESPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
_CUT = re.compile(f" (?=[^{WHITESPACE}])")
_ASCII_PIECES = re.compile(r"'(?:[stmd]|re|ve|ll)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", flags=re.ASCII)


@functools.cache
def bytes_to_unicode() -> dict[int, str]:
    """Byte -> its character: printable Latin-1 bytes stand for themselves, the others for U+0100 onwards, in order."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte if byte in printable else 256 + others.index(byte)) for byte in range(256)}


class _UnseenWhitespace(Exception):
    """A part that begins with whitespace: the line was cut where no piece begins."""


class _PieceTable(dict[str, bytes]):
    """Piece or part -> its ids as bytes of the encoder's type."""

    def __init__(self, tokenizer: Tokenizer, dtype: npt.DTypeLike) -> None:
        super().__init__()
        self._tokenizer, self._dtype = tokenizer, dtype

    def __missing__(self, text: str) -> bytes:
        check_text_length(text)
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError):
            raise DataError(f"text with an unpaired surrogate has no UTF-8 form: {text!r}") from None
        return self._keep(text, np.array(ids, dtype=self._dtype).tobytes())

    def _keep(self, text: str, value: bytes) -> bytes:
        if len(text) <= CACHE_LENGTH:
            if len(self) >= CACHE_ENTRIES:
                self.clear()
            self[text] = value
        return value


class _PartTable(_PieceTable):
    """Part of a line between two cuts -> its ids; ``prefix`` (nothing or a space) stood before the part."""

    def __init__(self, tokenizer: Tokenizer, dtype: npt.DTypeLike, pieces: _PieceTable, prefix: str) -> None:
        super().__init__(tokenizer, dtype)
        self._pieces, self._prefix = pieces, prefix

    def __missing__(self, part: str) -> bytes:
        if self._prefix and (not part or part[0] in WHITESPACE):
            raise _UnseenWhitespace
        text = self._prefix + part
        if text.isascii():
            value = b"".join(map(self._pieces.__getitem__, _ASCII_PIECES.findall(text)))
        else:
            value = self._pieces[text]
        return self._keep(part, value)


class Encoder:
    """Encode and decode text; ids are those of ``encoder.json``.

    Args:
        encoder: piece -> id.
        bpe_merges: pairs of pieces, best first.
        errors: how `decode` treats bytes that are not UTF-8.
    """

    def __init__(self, encoder: dict[str, int], bpe_merges: Sequence[tuple[str, str]], errors: str = "replace") -> None:
        self.encoder, self.errors = encoder, errors
        self.decoder = {idx: piece for piece, idx in encoder.items()}
        self.bpe_merges = list(bpe_merges)
        self.byte_encoder = bytes_to_unicode()
        self.byte_decoder = {char: byte for byte, char in self.byte_encoder.items()}
        for left, right in self.bpe_merges:
            if not (left in encoder and right in encoder and left + right in encoder):
                raise DataError(
                    f"the BPE merge {left!r} {right!r} makes or needs a piece that encoder.json does not list; the two"
                    " files do not belong together"
                )
        self._tokenizer = Tokenizer(models.BPE(vocab=encoder, merges=self.bpe_merges))
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._unknown = {byte for byte, char in self.byte_encoder.items() if char not in encoder}
        self.dtype = np.dtype(best_fitting_int_dtype(max(self.decoder, default=0) + 1))
        pieces = _PieceTable(self._tokenizer, self.dtype)
        self._first = _PartTable(self._tokenizer, self.dtype, pieces, "")
        self._later = _PartTable(self._tokenizer, self.dtype, pieces, " ")

    def encode_bytes(self, text: str) -> bytes:
        """Ids of ``text`` as bytes of ``self.dtype``. Raises DataError for characters that have no ids."""
        if self._unknown:
            self._check_bytes(text)
        first, *later = text.split(" ")
        try:
            return self._first[first] + b"".join(map(self._later.__getitem__, later))
        except _UnseenWhitespace:
            first, *later = _CUT.split(text)
            return self._first[first] + b"".join(map(self._later.__getitem__, later))

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``."""
        return np.frombuffer(self.encode_bytes(text), dtype=self.dtype).tolist()

    def encode_lines(self, lines: Sequence[str]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """(ids of all lines one after the other, number of ids of each line)."""
        rows = list(map(self.encode_bytes, lines))
        sizes = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)) // self.dtype.itemsize
        return np.frombuffer(b"".join(rows), dtype=self.dtype), sizes

    def decode(self, tokens: Iterable[int | str]) -> str:
        """Text of ids; a str among them (``<mask>``) is taken literally. Raises DataError for an id beyond the table."""
        parts = []
        for token in tokens:
            piece = token if isinstance(token, str) else self.decoder.get(token)
            if piece is None:
                raise DataError(f"{token} is not a BPE id: encoder.json has {len(self.decoder)} pieces")
            parts.append(piece)
        data = bytearray(self.byte_decoder[char] for char in "".join(parts))
        return data.decode("utf-8", errors=self.errors)

    def _check_bytes(self, text: str) -> None:
        # The library drops what it does not know; a lost character must not pass unnoticed.
        missing = self._unknown.intersection(text.encode("utf-8", "surrogatepass"))
        if missing:
            raise DataError(f"encoder.json has no piece for the byte {min(missing):#04x} of the text {text[:40]!r}")


def read_merges(path: str) -> list[tuple[str, str]]:
    """The pairs of ``vocab.bpe``: a version line, then ``left right`` a line. Raises DataError for any other line.

    Ends of lines may be those of Windows: pieces have no ``\\r``, which stands among the 256 characters as another.
    """
    lines = _read(path).replace("\r\n", "\n").split("\n")
    merges = []
    for number, line in enumerate(lines[1:], 2):
        parts = line.split(" ")
        if len(parts) == 2 and all(parts):
            merges.append((parts[0], parts[1]))
        elif line.strip() or number < len(lines):
            raise DataError(
                f"{path}, line {number}: {line!r} is not a merge; expected two pieces and a space between them"
            )
    return merges


def get_encoder(encoder_json_path: str, vocab_bpe_path: str) -> Encoder:
    """Read ``encoder.json`` and ``vocab.bpe``. Raises DataError naming the file that is malformed."""
    try:
        encoder = json_value(_read(encoder_json_path))
    except ValueError as error:
        if isinstance(error, FairseqError):
            raise
        raise DataError(f"{encoder_json_path} is not JSON: {error}") from None
    if not isinstance(encoder, dict) or not all(type(idx) is int for idx in encoder.values()):
        raise DataError(f"{encoder_json_path} does not map pieces to integer ids")
    check_piece_ids(encoder.values(), encoder_json_path)
    merges, files = read_merges(vocab_bpe_path), f"{encoder_json_path} and {vocab_bpe_path}"
    long = {piece for piece in encoder if len(piece) > 1 and not piece.startswith("<")}  # <|endoftext|> is made by none
    made = long.intersection(left + right for left, right in merges)
    if 2 * len(made) < len(long):
        raise DataError(
            f"{files} do not belong together: the merges make only {len(made):,} of {len(long):,} pieces of several characters"
        )
    return load(lambda: Encoder(encoder, merges), files, "are not a byte-level BPE")


def _read(path: str | os.PathLike[str]) -> str:
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as handle:
            return handle.read()
    except FileNotFoundError:
        raise DataNotFoundError(f"BPE file not found: {path}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from None


@BPES.register("gpt2", dataclass=GPT2BPEConfig)
class GPT2BPE:
    """Text to space-joined decimal ids and back; ``bpe`` is the encoder itself."""

    def __init__(self, cfg: Any) -> None:
        self.bpe: Encoder = get_encoder(
            required_file(cfg, "gpt2_encoder_json", "gpt2"), required_file(cfg, "gpt2_vocab_bpe", "gpt2")
        )

    def encode(self, x: str) -> str:
        return " ".join(map(str, self.bpe.encode(x)))

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
