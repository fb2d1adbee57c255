"""Rows of a vocabulary, in the order of another program and in ours.

Ours begins with ``<s>`` (their cls), ``<pad>``, ``</s>`` (their sep) and ``<unk>``, goes on with all other rows in their
order and ends with ``<mask>``. The size stays the same. Symbols are ids written in decimal, as the BPE ``hf_tokenizer``
writes them: that of their row i is i.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq.data.dictionary import Dictionary
from fairseq.errors import CheckpointError, ConfigError, FairseqError
from fairseq.interop.portable import TOKENIZER, VOCABULARY, load_json

SPECIAL = ("cls", "pad", "sep", "unk", "mask")
_SPELLINGS = {
    "cls": ("[CLS]", "<cls>", "<s>"),
    "pad": ("[PAD]", "<pad>"),
    "sep": ("[SEP]", "<sep>", "</s>"),
    "unk": ("[UNK]", "<unk>"),
    "mask": ("[MASK]", "<mask>"),
}


def parse_special(text: str) -> dict[str, int]:
    """``cls=0,pad=1`` as a dict. Raises ConfigError."""
    found: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name.strip() not in SPECIAL or not value.strip().isdecimal():
            raise ConfigError(f"--special wants ids as in {','.join(f'{key}=I' for key in SPECIAL)}, but has {part!r}")
        found[name.strip()] = int(value)
    return found


def special_ids(
    folder: Path, given: Mapping[str, int], size: int, otherwise: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Ids of all special tokens of the vocabulary with ``size`` rows.

    Those ``given``, else those of ``tokenizer.json`` or ``vocab.txt``, ``otherwise`` those.

    Raises ConfigError when one is not known, CheckpointError when they are no such ids.
    """
    try:
        known = _of_tokenizer(folder)
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, FairseqError):
            raise
        raise CheckpointError(f"the files of the tokenizer in {folder} are damaged: {error!r}") from None
    ids = {**(otherwise or {}), **known, **given}
    missing = [name for name in SPECIAL if name not in ids]
    if missing:
        wanted = ",".join(f"{name}=I" for name in missing)
        there = [name for name in (TOKENIZER, VOCABULARY) if (folder / name).is_file()]
        where = there[0] if there else f"{folder} without a {TOKENIZER} or {VOCABULARY}"
        raise ConfigError(f"{where} does not say which ids {', '.join(missing)} have: give --special {wanted}")
    ids = {name: ids[name] for name in SPECIAL}
    if not all(type(value) is int for value in ids.values()):
        raise CheckpointError(f"special tokens need ids that are integers, but they are {list(ids.values())!r:.80}")
    if len(set(ids.values())) < len(ids) or not all(0 <= value < size for value in ids.values()):
        shown = ",".join(f"{name}={value}" for name, value in ids.items())
        raise CheckpointError(f"special tokens need ids of their own from 0 to {size - 1}, but they are {shown}")
    return ids


def _of_tokenizer(folder: Path) -> dict[str, int]:
    known = _ids_of_pieces(folder)
    named = _named(folder)
    found = {}
    for name, spellings in _SPELLINGS.items():
        token = next((token for token in (named.get(name), *spellings) if token in known), None)
        if token is not None:
            found[name] = int(known[token])
    return found


def _ids_of_pieces(folder: Path) -> dict[str, int]:
    if not (folder / TOKENIZER).is_file():
        lines = vocabulary_lines(folder / VOCABULARY) if (folder / VOCABULARY).is_file() else []
        return {piece: row for row, piece in enumerate(lines)}
    tokenizer = load_json(folder / TOKENIZER)
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, list):  # unigram models: [piece, score] in the order of ids
        vocabulary = {piece: number for number, (piece, _) in enumerate(vocabulary)}
    return {**vocabulary, **{token["content"]: token["id"] for token in tokenizer.get("added_tokens") or ()}}


def vocabulary_lines(path: Path) -> list[str]:
    """The lines of BERT's ``vocab.txt``: the piece of each id. Raises CheckpointError when it is no text."""
    try:
        return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text: {error}") from None


def _named(folder: Path) -> dict[str, Any]:
    """Name -> token, as ``special_tokens_map.json`` or ``tokenizer_config.json`` says."""
    stored: dict[str, Any] = {}
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        stored |= load_json(folder / file) if (folder / file).is_file() else {}
    tokens = {name: stored.get(f"{name}_token") for name in SPECIAL}
    return {name: token["content"] if isinstance(token, Mapping) else token for name, token in tokens.items()}


def our_order(special: Mapping[str, int], size: int) -> list[int]:
    """Their row of each of our rows."""
    taken = set(special.values())
    others = (row for row in range(size) if row not in taken)
    return [*(special[name] for name in ("cls", "pad", "sep", "unk")), *others, special["mask"]]


def symbols(order: Sequence[int], pieces: Sequence[str] | None = None) -> list[str]:
    """What ``dict.txt`` lists: of row i the number i, or its piece; a piece that can be no symbol there is never written,
    and gets a name that no text has."""
    if pieces is None:
        return [str(row) for row in order[4:-1]]
    used: set[str] = {*Dictionary().symbols, "<mask>"}
    found = []
    for row in order[4:-1]:
        piece = pieces[row] if row < len(pieces) else ""
        found.append(piece if piece and piece not in used and not set(piece) & set(" \n") else f"madeupword{row:05d}")
        used.add(found[-1])
    return found


def to_ours(table: Tensor, order: Sequence[int]) -> Tensor:
    """Rows of ``table`` (V, ...), which are in their order, in ours."""
    return table[torch.tensor(order)]


def to_theirs(table: Tensor, order: Sequence[int]) -> Tensor:
    """The inverse of `to_ours`."""
    result = torch.empty_like(table)
    result[torch.tensor(order)] = table
    return result
