"""From one checkpoint format to another, by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from fairseq.checkpoint.atomic import atomic_save
from fairseq.checkpoint.safe_load import load
from fairseq.errors import CheckpointError, ConfigError
from fairseq.file_io import check_outputs
from fairseq.interop import fairseq_alibi_clap
from fairseq.registry import nearest

State = Mapping[str, Any]
ALIBI_CLAP, UPSTREAM = "fairseq-alibi-clap", "fairseq-upstream"

# (from, to) -> what makes a state of the second format of one of the first.
CONVERSIONS: dict[tuple[str, str], Callable[[State], State]] = {
    (ALIBI_CLAP, UPSTREAM): fairseq_alibi_clap.to_upstream,
    (UPSTREAM, ALIBI_CLAP): fairseq_alibi_clap.from_upstream,
}


def convert_checkpoint(
    source: str, target: str, source_path: str | os.PathLike[str], target_path: str | os.PathLike[str]
) -> None:
    """Write the checkpoint ``source_path`` of the format ``source`` to ``target_path`` in the format ``target``.

    Raises ConfigError for a pair without a conversion and CheckpointError for a file that cannot be read, written or
    expressed in the target format.
    """
    if (source, target) not in CONVERSIONS:
        known = [f"{a} to {b}" for a, b in CONVERSIONS]
        hint = nearest(f"{source} to {target}", known)
        raise ConfigError(f"no conversion from {source!r} to {target!r}{hint or '.'} There are: {', '.join(known)}")
    check_outputs([target_path], [source_path])
    state = load(source_path)
    try:
        state = dict(CONVERSIONS[source, target](state))
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(source_path)}: {error}") from None
    atomic_save(state, target_path)
