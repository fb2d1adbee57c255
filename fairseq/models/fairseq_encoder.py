"""The base class of encoders, under its old import path."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn


class EncoderOut(NamedTuple):
    """What encoders of the original's seq2seq models returned; kept for plugins and tests that import it."""

    encoder_out: Tensor
    encoder_padding_mask: Tensor | None
    encoder_embedding: Tensor | None
    encoder_states: list[Tensor] | None
    src_tokens: Tensor | None
    src_lengths: Tensor | None


class FairseqEncoder(nn.Module):
    """A module that knows its dictionary and its longest input."""

    def __init__(self, dictionary: Any) -> None:
        super().__init__()
        self.dictionary = dictionary

    def forward(self, src_tokens: Tensor, src_lengths: Tensor | None = None, **kwargs: Any) -> Any:
        raise NotImplementedError

    def max_positions(self) -> int:
        """The longest input in tokens."""
        return int(1e6)

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> dict[str, Any]:
        """Change old names in ``state_dict``, in place; ``name`` is this module's own."""
        return state_dict

    def set_num_updates(self, num_updates: int) -> None:
        """Called by the trainer after every update; forwarded to the children that have such a method."""
        tell_children(self, "set_num_updates", num_updates)


def tell_children(module: nn.Module, method: str, value: Any) -> None:
    """Call ``method(value)`` on the children of ``module`` that have it."""
    for child in module.children():
        found: Any = getattr(child, method, None)
        if found is not None:
            found(value)
