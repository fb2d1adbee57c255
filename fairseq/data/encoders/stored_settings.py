"""What travels in the files of the `tokenizers` library and would lose or change text: switched off here.

Lengths are up to who makes the batches, and a text has the same pieces every time. What a model was trained with (how
text is normalized and cut) stays.
"""

from __future__ import annotations

import json
import os
import tempfile
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tokenizers import Tokenizer

from fairseq.data.encoders.gpt2_bpe import bytes_to_unicode

LOST = "\0lost"  # no text and no merge makes this piece


def without_loss(tokenizer: Tokenizer) -> tuple[Tokenizer, int | None]:
    """``tokenizer`` (or its like) without truncation, padding and dropout, and the id that it gives to what has no piece.

    None: every character has one, or the file says what unknown ones become. The library leaves out characters that a
    BPE lacks, without a sign.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if hasattr(tokenizer.model, "dropout"):
        tokenizer.model.dropout = None
    stored = json.loads(tokenizer.to_str())
    model = stored["model"]
    if model.get("type") != "BPE" or model.get("unk_token") in model["vocab"] or _is_complete(stored):
        return tokenizer, None
    lost = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    model["vocab"][LOST], model["unk_token"] = lost, LOST
    return Tokenizer.from_str(json.dumps(stored)), lost


@contextmanager
def without_mark(path: str) -> Iterator[str]:
    """The path of a file with the content of ``path`` after its byte-order mark: itself, if there is none."""
    with open(path, "rb") as handle:
        if handle.read(len(BOM_UTF8)) != BOM_UTF8:
            yield path
            return
        content = handle.read()
    with tempfile.TemporaryDirectory() as scratch:
        copy = os.path.join(scratch, os.path.basename(path))
        with open(copy, "wb") as handle:
            handle.write(content)
        yield copy


def _is_complete(stored: dict[str, Any]) -> bool:
    """Whether the vocabulary has every byte, and text is read as bytes."""
    vocab = stored["model"]["vocab"]
    if stored["model"].get("byte_fallback") and all(f"<0x{byte:02X}>" in vocab for byte in range(256)):
        return True
    parts = [stored.get("normalizer"), stored.get("pre_tokenizer")]
    parts += [
        inner for part in parts if part for key in ("normalizers", "pretokenizers") for inner in part.get(key) or ()
    ]
    is_byte_level = any(part and part.get("type") == "ByteLevel" for part in parts)
    return is_byte_level and all(char in vocab for char in bytes_to_unicode().values())
