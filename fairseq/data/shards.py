"""Data in several directories that take turns, one an epoch: do they belong together?"""

from __future__ import annotations

import os

from fairseq.data.dictionary import Dictionary
from fairseq.errors import DataError, DataNotFoundError


def directory_not_found(directory: str, paths: str) -> DataNotFoundError:
    """The error for one of the directories in ``paths``."""
    turns = f" (':' separates directories that take turns: {paths})" if directory != paths else ""
    return DataNotFoundError(
        f"data directory not found: {directory}{turns}; give the directory that fairseq-preprocess wrote"
    )


def check_dictionary(directory: str, dictionary: Dictionary, first: str) -> None:
    """Raise DataError unless ``dict.txt`` in ``directory``, if there is one, is ``dictionary``, which ``first`` has.

    ``<mask>`` at the end of ``dictionary``, which no file lists, makes no difference.
    """
    path = os.path.join(directory, "dict.txt")
    if not os.path.exists(path):
        return
    own, other = dictionary.symbols, Dictionary.load(path).symbols
    if own[: len(other)] == other and own[len(other) :] in ([], ["<mask>"]):
        return
    pairs = enumerate(zip(own, other, strict=False))
    differs = next((number for number, (one, two) in pairs if one != two), min(len(own), len(other)))
    raise DataError(
        f"{path} is not the dictionary of {first}: they differ from symbol {differs} on, so ids would mean other symbols;"
        " preprocess all directories with one --srcdict"
    )
