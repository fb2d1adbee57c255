"""State of step-by-step decoding, which attention layers of the original carry without using it in an encoder."""

from __future__ import annotations

import uuid
from typing import Any, TypeVar

from torch import Tensor

C = TypeVar("C", bound=type)
State = dict[str, dict[str, Tensor | None]]


class FairseqIncrementalState:
    """A place of its own for each module in the dictionary that decoding hands around."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.init_incremental_state()

    def init_incremental_state(self) -> None:
        self._incremental_state_id = str(uuid.uuid4())

    def _get_full_incremental_state_key(self, key: str) -> str:
        return f"{self._incremental_state_id}.{key}"

    def get_incremental_state(self, incremental_state: State | None, key: str) -> dict[str, Tensor | None] | None:
        return None if incremental_state is None else incremental_state.get(self._get_full_incremental_state_key(key))

    def set_incremental_state(
        self, incremental_state: State | None, key: str, value: dict[str, Tensor | None]
    ) -> State | None:
        if incremental_state is not None:
            incremental_state[self._get_full_incremental_state_key(key)] = value
        return incremental_state


def with_incremental_state(cls: C) -> C:
    """Class decorator: ``cls`` with the methods of `FairseqIncrementalState`."""
    others = tuple(base for base in cls.__bases__ if base is not FairseqIncrementalState)
    cls.__bases__ = (FairseqIncrementalState, *others)
    return cls
