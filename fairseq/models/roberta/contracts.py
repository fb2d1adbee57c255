"""Encoders with the interface of the original, which plugins put into a `RobertaEncoder`, and arguments that nobody uses.

Legend: B batch, T tokens, C channels, L layers.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fairseq.logging.setup import warn_once
from fairseq.modules.encoder import EncoderOutput
from fairseq.overrides import accepts

logger = logging.getLogger(__name__)

OLD_ARGUMENTS = {"src_tokens", "src_lengths", "last_state_only", "token_embeddings"}
UNUSED = ("src_lengths", "src_id", "target_tokens", "prev_output_tokens")
"""What tasks of the original put into ``net_input`` for models that want it; an encoder has no use for them."""
# Argument of ours -> its names in encoders of the original.
OLD_NAMES = {
    "token_embeddings": ("token_embeddings",),
    "position_ids": ("positions", "position_ids"),
    "token_type_ids": ("segment_labels", "token_type_ids"),
    "padding_mask": ("padding_mask", "encoder_padding_mask"),
}


def takes_ids(encoder: nn.Module) -> bool:
    """Whether ``encoder`` wants ids (B, T), as those of the original did, rather than vectors and a padding mask."""
    return _takes_ids(type(encoder))  # type: ignore[arg-type]


@functools.cache
def _takes_ids(kind: Any) -> bool:
    names = inspect.signature(kind.forward).parameters
    return "padding" not in names and bool(OLD_ARGUMENTS & names.keys())


def run_old(encoder: nn.Module, tokens: Tensor, return_all_hiddens: bool, given: Mapping[str, Any]) -> EncoderOutput:
    """The output of an ``encoder`` of the original for ``tokens`` (B, T), and for those arguments that are ``given``.

    It is called ``encoder(src_tokens, return_all_hiddens=..., token_embeddings=...)`` and gives a dictionary with
    ``encoder_out`` ([T x B x C]) and ``encoder_states``; or, older, ``encoder(tokens, last_state_only=...)``, which
    gives the states (T x B x C) and a vector for the sentence. Raises TypeError for an argument that it does not take.
    """
    arguments: dict[str, Any] = {}
    if accepts(encoder.forward, "return_all_hiddens"):
        arguments["return_all_hiddens"] = return_all_hiddens
    elif accepts(encoder.forward, "last_state_only"):
        arguments["last_state_only"] = not return_all_hiddens
    for name, value in given.items():
        own = next((own for own in OLD_NAMES.get(name, (name,)) if accepts(encoder.forward, own)), None)
        if own is None:
            raise TypeError(f"the encoder {type(encoder).__name__} takes no {name}, but they are given")
        arguments[own] = value
    return _read(encoder(tokens, **arguments), return_all_hiddens)


def _read(output: Any, return_all_hiddens: bool) -> EncoderOutput:
    if isinstance(output, EncoderOutput):
        return output
    if isinstance(output, dict):
        last, states = output["encoder_out"], output.get("encoder_states")
    elif hasattr(output, "encoder_out"):  # a named tuple with these
        last, states = output.encoder_out, output.encoder_states
    else:
        states = output[0]
        last = states[-1]
    last = last[0] if isinstance(last, (list, tuple)) else last
    return EncoderOutput(last.transpose(0, 1), list(states) if return_all_hiddens and states is not None else None)


def check_unused(owner: nn.Module, arguments: Mapping[str, Any], strict: bool) -> None:
    """Raise TypeError for ``arguments`` of ``owner`` that nobody uses; with ``strict`` off only warn, once for each.

    None is no argument.
    """
    for name, value in arguments.items():
        if value is None or name in UNUSED:
            continue
        message = f"{type(owner).__name__} was given {name!r}, which nothing in it uses"
        if strict:
            raise TypeError(
                f"{message}: leave it out, or override forward (extract_features) with a method that takes it"
            )
        warn_once(logger, message)
