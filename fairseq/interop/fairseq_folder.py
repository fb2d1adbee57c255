"""This project's own folders: a checkpoint, ``dict.txt``, the files of the tokenizer, and what the way back needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq.checkpoint.atomic import atomic_save
from fairseq.checkpoint.contents import Wrong, group, listing, number, optional, text
from fairseq.checkpoint.reader import load_checked
from fairseq.data.dictionary import Dictionary
from fairseq.errors import CheckpointError, DataNotFoundError
from fairseq.interop.portable import PortableModel, files_beside, load_json, save_json
from fairseq.interop.vocabulary import our_order, special_ids
from fairseq.models.roberta.addresses import CHECKPOINTS, checkpoint_in
from fairseq.models.roberta.upgrade import rename_legacy
from fairseq.registry import FORMATS

ORIGIN = "conversion.json"
ORIGIN_RULES = group(
    special=group(others=number(0, whole=True)),
    rows=listing(number(0, whole=True)),
    config=group(),
    kind=optional(text),
    keys=listing(text),
)


@FORMATS.register("fairseq")
class FairseqFolder:
    """A folder that ``RobertaModel.from_pretrained`` loads; read also by the path of a checkpoint in it."""

    @staticmethod
    def read(path: Path, special: Mapping[str, int]) -> PortableModel:
        file = path if path.is_file() else checkpoint_in(path)
        if file is None:
            raise DataNotFoundError(f"there is no {', '.join(CHECKPOINTS)} in {path}; give the folder of a model")
        state = load_checked(file)
        weights = dict(state["model"])
        rename_legacy(weights, "")
        state = {**state, "model": weights}
        folder = file.parent
        stored, weights = folder / ORIGIN, state["model"]
        origin = _stored_origin(stored, weights) if stored.is_file() else _origin(folder, weights, special)
        symbols = None
        if (folder / "dict.txt").is_file():
            dictionary = Dictionary.load(folder / "dict.txt")
            symbols = dictionary.symbols[dictionary.nspecial :]
        return PortableModel(state, symbols, files_beside(folder), origin, folder)

    @staticmethod
    def write(model: PortableModel, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        atomic_save(model.state, path / "model.pt")
        if model.symbols is not None:
            dictionary = Dictionary()
            for symbol in model.symbols:
                dictionary.add_symbol(symbol)
            dictionary.save(path / "dict.txt")
        if model.origin:
            save_json(model.origin, path / ORIGIN)


def _stored_origin(path: Path, weights: Mapping[str, Any]) -> dict[str, Any]:
    """What the file ``path`` says, if it can be true of ``weights``. Raises CheckpointError."""
    origin = load_json(path)
    try:
        ORIGIN_RULES(origin, "")
    except Wrong as wrong:
        raise CheckpointError(f"{path} is malformed: {wrong}") from None
    size = _vocabulary(weights)
    if "rows" in origin and size is not None and sorted(origin["rows"]) != list(range(size)):
        raise CheckpointError(
            f"{path} is malformed: rows must be the numbers 0 to {size - 1}, each once, in another order"
        )
    return origin


def _vocabulary(weights: Mapping[str, Any]) -> int | None:
    return next((len(value) for key, value in weights.items() if key.endswith("embed_tokens.weight")), None)


def _origin(folder: Path, weights: Mapping[str, Any], special: Mapping[str, int]) -> dict[str, Any]:
    """The order of rows, for a checkpoint that has been trained on elsewhere, from the ids that its tokenizer has."""
    size = _vocabulary(weights)
    if not special or size is None:
        return {}
    ids = special_ids(folder, special, size)
    return {"special": ids, "rows": our_order(ids, size)}
