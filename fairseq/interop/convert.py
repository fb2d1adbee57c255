"""From one format of pretrained models to another, by name: the formats are those in ``fairseq.registry.FORMATS``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq.errors import CheckpointError, ConfigError, DataNotFoundError, FairseqError
from fairseq.file_io import check_outputs, copy_file
from fairseq.interop.portable import PortableModel
from fairseq.models.hub import format_of
from fairseq.registry import FORMATS, nearest

ALIBI_CLAP, UPSTREAM = "fairseq-alibi-clap", "fairseq-upstream"


def convert_checkpoint(
    source: str,
    target: str,
    source_path: str | os.PathLike[str],
    target_path: str | os.PathLike[str],
    special: Mapping[str, int] | None = None,
    sentence: Mapping[str, Any] | None = None,
) -> None:
    """Write the model ``source_path`` (a file or folder) of the format ``source`` to ``target_path`` in the format ``target``.

    ``special`` are ids of special tokens (cls, pad, sep, unk, mask) that the source does not know itself; ``sentence`` are
    ``pooling`` (mean, first) and ``normalize`` of a format for embeddings of texts. Raises
    ConfigError for unknown formats and CheckpointError for a model that cannot be read, written or expressed in the
    target format.
    """
    for name in (source, target):
        if name not in FORMATS:
            known = FORMATS.names()
            raise ConfigError(
                f"no conversion from {source!r} to {target!r}: unknown format {name!r}{nearest(name, known)} "
                f"(known: {', '.join(known)})"
            )
    origin, destination = Path(source_path), Path(target_path)
    if not origin.exists():
        raise DataNotFoundError(f"there is no {origin} to convert")
    check_outputs([destination], [origin])
    home = origin if origin.is_dir() else origin.parent
    if destination.is_dir() and destination.samefile(home):
        raise ConfigError(f"the output {destination} is the folder of the input; choose another one")
    try:
        model = FORMATS.get(source).read(origin, special or {})
        model.sentence |= sentence or {}
        writer = FORMATS.get(target)
        writer.write(model, destination)
        if destination.is_dir() and not getattr(writer, "writes_tokenizer", False):
            for name, file in model.files.items():
                copy_file(file, destination / name)
    except CheckpointError as error:
        raise CheckpointError(f"{origin}: {error}") from None
    except FairseqError:  # some of which are OSErrors too
        raise
    except OSError as error:
        raise CheckpointError(
            f"cannot convert {origin} to {destination}: {error.strerror} ({error.filename})"
        ) from None


def read_any(path: str | os.PathLike[str]) -> PortableModel:
    """The model at ``path``: a checkpoint, a folder with one, or a folder of Transformers."""
    place = Path(path)
    if not place.exists():
        raise DataNotFoundError(f"there is no {place}")
    found = format_of(place) if place.is_dir() else None
    return (FORMATS.get("fairseq") if found is None else found).read(place, {})
