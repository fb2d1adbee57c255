"""One guard around the libraries of subword encoders: what they raise, or break on, becomes a sentence that names the file.

A library gets a whole text at once and takes about a gigabyte and a few seconds for one at the limits here; far beyond
them it takes hours, or ends the process. Lines of real text are far below.
"""

from __future__ import annotations

import base64
import functools
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from fairseq.errors import DataError, FairseqError

LONGEST_RUN = 1 << 20  # characters without a blank, or of blanks alone
LONGEST_TEXT = 1 << 22  # characters
HIGHEST_ID = (1 << 22) - 1  # tables have a row for every id up to the highest

T = TypeVar("T")
_RUNS = re.compile(r"\s+|\S+")


def check_text_length(text: str) -> None:
    """Raise DataError, naming the limit, for a text that is too long to encode at once."""
    if len(text) <= LONGEST_RUN:
        return
    longest = max(_RUNS.finditer(text), key=lambda run: run.end() - run.start())
    size = longest.end() - longest.start()
    if size > LONGEST_RUN:
        kind = "blanks" if text[longest.start()].isspace() else "characters without a blank"
        raise DataError(
            f"a text has {size:,} {kind} one after the other, but at most {LONGEST_RUN:,} can be encoded ({text[:30]!r}...); "
            "divide it into lines"
        )
    if len(text) > LONGEST_TEXT:
        raise DataError(
            f"a text has {len(text):,} characters, but at most {LONGEST_TEXT:,} can be encoded at once ({text[:30]!r}...); "
            "divide it into lines"
        )


def check_piece_ids(ids: Collection[int], files: str) -> None:
    """Raise DataError, naming ``files``, for a vocabulary without pieces and for ids that no table can have."""
    if not ids:
        raise DataError(f"{files}: the vocabulary is empty")
    if min(ids) < 0 or max(ids) > HIGHEST_ID:
        wrong = min(ids) if min(ids) < 0 else max(ids)
        raise DataError(f"{files}: the id {wrong} is out of range; ids of pieces are 0 to {HIGHEST_ID:,}")


def guarded(method: Callable[[Any, Any], T]) -> Callable[[Any, Any], T]:
    """A method ``encode...(self, text or texts)`` whose mistakes are DataErrors that name ``self.files``."""

    @functools.wraps(method)
    def encode(self: Any, given: str | Sequence[str]) -> T:
        texts = [given] if isinstance(given, str) else given
        for text in texts:
            check_text_length(text)
        try:
            return method(self, given)
        except (FairseqError, MemoryError):
            raise
        except BaseException as error:
            _check_surrogates(texts)
            if type(error) in (Exception, RuntimeError) or _is_panic(error):
                raise DataError(f"{self.files} cannot encode a text: {_reason(error)}") from None
            raise

    return encode


def _check_surrogates(texts: Sequence[str]) -> None:
    for text in texts:
        with suppress(UnicodeEncodeError):
            text.encode("utf-8")
            continue
        raise DataError(f"text with an unpaired surrogate has no UTF-8 form: {text[:40]!r}")


def load(read: Callable[[], T], files: str, what: str, probe: Callable[[T], object] | None = None) -> T:
    """What ``read`` gives. Whatever it raises is a DataError: ``files`` are not ``what``.

    ``probe`` tries what was read: files on which the library panics are refused before any text is read.
    """
    try:
        with _quiet():
            found = read()
            if probe is not None:
                with suppress(Exception):  # a text that this vocabulary cannot have
                    probe(found)
            return found
    except (FairseqError, MemoryError):
        raise
    except BaseException as error:
        if isinstance(error, Exception) or _is_panic(error):
            raise DataError(f"{files} {what}: {_reason(error)}") from None
        raise


PROBE = "The man, 12 x " + 40 * "a" + "! \u00e9\u6f22\U0001f600\u00ad  \t" + "ab" * 20
"""Letters, digits, blanks, accents and long runs: what damaged tables and careless regular expressions break on."""


def _is_panic(error: BaseException) -> bool:
    """The exception of a Rust library that gave up; its class, which is no Exception, cannot be imported."""
    return type(error).__name__ == "PanicException"


def _reason(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing goes to the standard error stream, where a library that panics prints so (what it raises says as much)."""
    try:
        kept = os.dup(2)
    except OSError:  # closed
        yield
        return
    if sys.stderr is not None:
        sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def check_charsmaps(path: str) -> None:
    """Raise DataError for a character map in the tokenizer.json ``path`` that is too short: the library would abort.

    A map is the size of its table in bytes (32 bits), the table (of 32-bit units), and texts.
    """
    try:
        with open(path, "rb") as file:
            found = [base64.b64decode(data) for data in _CHARSMAPS.findall(file.read())]
    except (OSError, ValueError):  # for the library to say
        return
    for data in found:
        size = int.from_bytes(data[:4], "little")
        if len(data) < 4 or size % 4 or size > len(data) - 4:
            raise DataError(f"{path} is not a valid tokenizer.json: its precompiled_charsmap is damaged")


_CHARSMAPS = re.compile(rb'"precompiled_charsmap"\s*:\s*"([^"]*)"')
