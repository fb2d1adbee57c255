"""`Dictionary`: the mapping between symbols (words or BPE pieces) and consecutive ids, and its ``dict.txt``.

A text file lists every symbol but the special ones, one ``<symbol> <count>`` a line, so the id of a symbol is its line
number plus the number of specials. Torch is imported only by the methods that make tensors: preprocessing needs none.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import IO, TYPE_CHECKING, Any

from fairseq.data.pool import map_in_order
from fairseq.data.text import ByteRange, byte_ranges, post_process, read_blocks, tokenize_line
from fairseq.errors import DataError, DataNotFoundError
from fairseq.file_io import complete_file

if TYPE_CHECKING:
    import torch

BYTE_ORDER_MARK = "\ufeff"
OVERWRITE = "#fairseq:overwrite"


class DuplicateSymbolError(DataError, RuntimeError):
    """A ``dict.txt`` that lists a symbol twice (a RuntimeError, as callers of the original expect)."""


class Dictionary:
    """Symbols, their counts and their ids.

    Specials come first: bos 0, pad 1, eos 2, unk 3, then ``extra_special_symbols``. Parallel state: ``symbols``,
    ``count`` and the map ``indices``. With ``add_special_symbols=False`` there are no specials at all.
    """

    def __init__(
        self,
        *,
        bos: str = "<s>",
        pad: str = "<pad>",
        eos: str = "</s>",
        unk: str = "<unk>",
        extra_special_symbols: Iterable[str] | None = None,
        add_special_symbols: bool = True,
    ) -> None:
        self.bos_word, self.unk_word, self.pad_word, self.eos_word = bos, unk, pad, eos
        self.symbols: list[str] = []
        self.count: list[int] = []
        self.indices: dict[str, int] = {}
        self.nspecial = 0
        if add_special_symbols:
            self.bos_index = self.add_symbol(bos)
            self.pad_index = self.add_symbol(pad)
            self.eos_index = self.add_symbol(eos)
            self.unk_index = self.add_symbol(unk)
            for symbol in extra_special_symbols or ():
                self.add_symbol(symbol)
            self.nspecial = len(self.symbols)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dictionary) and self.indices == other.indices

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, idx: int) -> str:
        """The symbol of ``idx``, or the unk word when ``idx`` is beyond the end."""
        return self.symbols[idx] if idx < len(self.symbols) else self.unk_word

    def get_count(self, idx: int) -> int:
        return self.count[idx]

    def __len__(self) -> int:
        return len(self.symbols)

    def __contains__(self, sym: object) -> bool:
        return sym in self.indices

    def index(self, sym: str) -> int:
        """The id of ``sym``, or that of unk."""
        if not isinstance(sym, str):
            raise TypeError(f"Dictionary.index takes a str, but got {sym!r} of type {type(sym).__name__}")
        found = self.indices.get(sym)
        return self.unk_index if found is None else found

    def bos(self) -> int:
        return self.bos_index

    def pad(self) -> int:
        return self.pad_index

    def eos(self) -> int:
        return self.eos_index

    def unk(self) -> int:
        return self.unk_index

    def unk_string(self, escape: bool = False) -> str:
        """The unk word; wrapped once more in ``<>`` when ``escape``, so that it differs from a literal one."""
        return f"<{self.unk_word}>" if escape else self.unk_word

    def add_symbol(self, word: str, n: int = 1, overwrite: bool = False) -> int:
        """Count ``word`` ``n`` times more and return its id; unknown words get the next id.

        With ``overwrite`` a known word gets a new row as well; the old row stays, its id no longer found by name.
        """
        if word in self.indices and not overwrite:
            idx = self.indices[word]
            self.count[idx] += n
            return idx
        idx = len(self.symbols)
        self.indices[word] = idx
        self.symbols.append(word)
        self.count.append(n)
        return idx

    def update(self, new_dict: Dictionary) -> None:
        """Add the symbols and counts of another dictionary."""
        for word, idx in new_dict.indices.items():
            self.add_symbol(word, new_dict.count[idx])

    def finalize(self, threshold: int = -1, nwords: int = -1, padding_factor: int = 8) -> None:
        """Sort by count (ties: by symbol), keep at most ``nwords`` with specials and those seen ``threshold`` times.

        Then pad with ``madeupword`` rows to a multiple of ``padding_factor``, for which ``nwords`` may be exceeded.
        """
        if nwords <= 0:
            nwords = len(self)
        special = self.nspecial
        counts = dict(zip(self.symbols[special:], self.count[special:], strict=True))
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        kept = [item for item in ranked[: max(0, nwords - special)] if item[1] >= threshold]
        self.symbols = self.symbols[:special] + [symbol for symbol, _ in kept]
        self.count = self.count[:special] + [count for _, count in kept]
        self.indices = {symbol: idx for idx, symbol in enumerate(self.symbols)}
        self.pad_to_multiple_(padding_factor)

    def pad_to_multiple_(self, padding_factor: int) -> None:
        """Append ``madeupword0000``, ``madeupword0001``, ... until the length is a multiple."""
        number = 0
        while padding_factor > 1 and len(self) % padding_factor != 0:
            self.add_symbol(f"madeupword{number:04d}", n=0)
            number += 1

    # Files

    @classmethod
    def load(cls, f: str | os.PathLike[str] | IO[str], add_special_symbols: bool = True) -> Dictionary:
        """Read a ``dict.txt`` (path or open text file); see `add_from_file` for the errors."""
        dictionary = cls() if add_special_symbols else cls(add_special_symbols=False)
        dictionary.add_from_file(f)
        return dictionary

    def add_from_file(self, f: str | os.PathLike[str] | IO[str]) -> None:
        """Add the rows ``<symbol> <count>[ #fairseq:overwrite]`` of a file.

        The row is split at its last spaces, so a symbol may hold spaces. A byte-order mark is taken away. Raises
        DataNotFoundError, DataError for a malformed row or wrong encoding, DuplicateSymbolError (also a RuntimeError) for
        a repeated symbol.
        """
        if isinstance(f, (str, os.PathLike)):
            try:
                with open(f, encoding="utf-8") as handle:
                    lines = handle.readlines()
            except FileNotFoundError:
                raise DataNotFoundError(f"dictionary not found: {os.fspath(f)}") from None
            except UnicodeError as error:
                raise DataError(f"dictionary {f} is not UTF-8 text ({error}); make it again or convert it") from None
            name = os.fspath(f)
        else:
            lines, name = f.readlines(), str(getattr(f, "name", "<dictionary>"))
        if lines and len(lines[0].split(" ")[0]) > 1:  # alone the mark is a symbol of a text
            lines[0] = lines[0].removeprefix(BYTE_ORDER_MARK)
        first = self._load_meta(lines)
        for number, line in enumerate(lines[first:], first + 1):
            self._add_row(line, name, number)

    def _add_row(self, line: str, name: str, number: int) -> None:
        row = line.rstrip()
        try:
            word, field = row.rsplit(" ", 1)
            overwrite = field == OVERWRITE
            if overwrite:
                word, field = word.rsplit(" ", 1)
            count = int(field)
        except ValueError:
            raise DataError(
                f"incorrect dictionary format in {name}, line {number}: {row!r}; expected '<symbol> <count>[ {OVERWRITE}]'"
            ) from None
        if word in self.indices and not overwrite:
            raise DuplicateSymbolError(
                f"Duplicate word {word!r} in {name}, line {number}: remove the line, or, if it should take a new id,"
                f" add ' {OVERWRITE}' at its end"
            )
        self.add_symbol(word, n=count, overwrite=overwrite)

    def _load_meta(self, lines: list[str]) -> int:
        """Hook for subclasses: read leading lines of their own, return how many."""
        return 0

    def _get_meta(self) -> tuple[list[Any], list[Any]]:
        """Hook for subclasses: extra (keys, values) written before the symbols."""
        return [], []

    def save(self, f: str | os.PathLike[str] | IO[str]) -> None:
        """Write ``dict.txt``; the directory is made when missing.

        Unlike the original's, a dictionary with overwritten symbols can be read again: their rows carry the flag.
        """
        if isinstance(f, (str, os.PathLike)):
            os.makedirs(os.path.dirname(f) or ".", exist_ok=True)
            with complete_file(f) as handle:
                self.save(handle)
            return
        keys, values = self._get_meta()
        f.writelines(f"{key} {value}\n" for key, value in zip(keys, values, strict=True))
        seen = set(self.symbols[: self.nspecial])
        for symbol, count in zip(self.symbols[self.nspecial :], self.count[self.nspecial :], strict=True):
            f.write(f"{symbol} {count}{' ' + OVERWRITE if symbol in seen else ''}\n")
            seen.add(symbol)

    # Lines and tensors

    def dummy_sentence(self, length: int) -> torch.Tensor:
        """``length`` random ordinary ids (float tensor truncated to int64, last one eos), from torch's generator."""
        import torch

        ids = torch.Tensor(length).uniform_(self.nspecial + 1, len(self)).long()
        ids[-1] = self.eos()
        return ids

    def encode_line(
        self,
        line: str,
        line_tokenizer: Callable[[str], list[str]] = tokenize_line,
        add_if_not_exist: bool = True,
        consumer: Callable[[str, int], None] | None = None,
        append_eos: bool = True,
        reverse_order: bool = False,
        masked_token: str | None = None,
        mask_idx: int | None = None,
    ) -> torch.Tensor:
        """Ids of the words of ``line`` as an int32 tensor (T).

        ``masked_token`` becomes ``mask_idx`` without a look-up (it may lie outside the vocabulary); ``consumer`` is
        called with every word and id; eos comes last, also after ``reverse_order``.
        """
        import torch

        words = line_tokenizer(line)
        look_up = self.add_symbol if add_if_not_exist else self.index
        ids: list[int] = []
        for word in reversed(words) if reverse_order else words:
            idx = mask_idx if mask_idx is not None and word == masked_token else look_up(word)
            if consumer is not None:
                consumer(word, idx)
            ids.append(idx)
        if append_eos:
            ids.append(self.eos_index)
        return torch.tensor(ids, dtype=torch.int32)

    def string(
        self,
        tensor: Any,
        bpe_symbol: str | None = None,
        escape_unk: bool = False,
        extra_symbols_to_ignore: Iterable[int] | None = None,
        unk_string: str | None = None,
        include_eos: bool = False,
        separator: str = " ",
    ) -> str:
        """Text of an id tensor (T), or of each row of (B, T) joined by newlines.

        Drops bos, eos (unless ``include_eos``) and the extra ids, but keeps pad. Rows of a 2-D tensor keep every
        option, where the original loses ``unk_string`` and ``separator``.
        """
        import torch

        if torch.is_tensor(tensor) and tensor.dim() == 2:
            rows = (
                self.string(
                    row, bpe_symbol, escape_unk, extra_symbols_to_ignore, unk_string, include_eos, separator=separator
                )
                for row in tensor
            )
            return "\n".join(rows)
        ignored = set(extra_symbols_to_ignore or ())
        if not include_eos:
            ignored.add(self.eos_index)
        if hasattr(self, "bos_index"):
            ignored.add(self.bos_index)
        unk = unk_string if unk_string is not None else self.unk_string(escape_unk)
        ids = (int(i) for i in tensor)
        words = (unk if i == self.unk_index else self[i] for i in ids if i not in ignored)
        return post_process(separator.join(words), bpe_symbol)

    # Counting

    @staticmethod
    def add_file_to_dictionary(
        filename: str, dict: Dictionary, tokenize: Callable[[str], list[str]], num_workers: int
    ) -> None:
        """Count a text file into ``dict`` with ``num_workers`` processes; the result does not depend on their number
        once finalized."""
        size = os.path.getsize(filename) if os.path.exists(filename) else 0
        workers = min(max(1, num_workers), max(1, size // 4096))
        count = partial(_count_words, filename, tokenize, dict.eos_word)
        for counter in map_in_order(count, byte_ranges(filename, workers), workers):
            for word in sorted(counter):
                dict.add_symbol(word, counter[word])


def _count_words(
    filename: str, tokenize: Callable[[str], list[str]], eos_word: str, byte_range: ByteRange
) -> Counter[str]:
    """Counts of the words in a byte range, and one ``eos_word`` per line."""
    counter: Counter[str] = Counter()
    for lines in read_blocks(filename, *byte_range):
        if tokenize is tokenize_line:  # ends of lines separate words as spaces do: one call for the block
            counter.update(tokenize("\n".join(lines)))
        else:
            for line in lines:
                counter.update(tokenize(line))
        counter[eos_word] += len(lines)
    return counter
