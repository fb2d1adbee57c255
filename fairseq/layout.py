"""What the host knows of a batch and a device would have to be asked for: its padding, and which tokens are predicted.

Reading a number from a device waits for everything that it has still to do. So the collater, which has the batch in the
host's memory, sends the answers along: a sample gets ``layouts``, a `Layout` for each of its model inputs. Everything
works without them too: samples, criterions and models of plugins know nothing of them.

Legend: B batch, T tokens of the longest sequence, N non-padding tokens of the batch, R rows that are read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from fairseq.tree import map_tensors

ROWS = 128
"""Predicted rows are filled up to a multiple of this, so that products on the device come in few shapes."""
IGNORED = -100
"""The target of a row that counts nothing."""


@dataclass(frozen=True)
class _WithTensors:
    def map_tensors(self, function: Callable[[Tensor], Any]) -> Any:
        """The same with ``function`` applied to the tensors; see `fairseq.tree.map_tensors`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **map_tensors(function, values))

    def pin_memory(self) -> Any:
        """The same in pinned memory, from which a copy to the device waits for nothing; data loaders call it."""
        return self.map_tensors(Tensor.pin_memory)


@dataclass(frozen=True)
class Predicted(_WithTensors):
    """The tokens of a batch that are predicted, and as many others as fill up the last ``ROWS``, as far as there are.

    ``places`` (R,) in the flattened batch, without repetition, predicted ones first and in their order; ``packed`` (R,)
    the same among the N non-padding tokens, where these can be packed; ``targets`` (R,), `IGNORED` for the others;
    ``count`` of the predicted ones.
    """

    places: Tensor
    packed: Tensor | None
    targets: Tensor
    count: int


@dataclass(frozen=True)
class Layout(_WithTensors):
    """One batch of sequences (B, T). Numbers are the host's; tensors are for the device, and go there with the batch.

    ``padded``: whether anything is padding. ``token_counts`` (B,) int32: the tokens of every sequence, where there is padding
    and it all comes at the end. If also no sequence is empty, the batch can be packed: ``lengths`` are those counts,
    ``starts`` (B + 1,) int32 where the sequences begin and end among the N tokens, ``packed`` (N,) the places of these in
    the flattened batch. ``reads_padding``: whether features are read at padding too. ``types``: the least and the highest
    of ``token_type_ids``.
    """

    padded: bool
    token_counts: Tensor | None = None
    lengths: tuple[int, ...] | None = None
    starts: Tensor | None = None
    packed: Tensor | None = None
    predicted: Predicted | None = None
    reads_padding: bool = True
    types: tuple[int, int] | None = None


def layout_of_tokens(tokens: Tensor, padding_idx: int, target: Tensor | None = None) -> Layout:
    """The layout of ``tokens`` (B, T) on the host; those are predicted whose ``target`` (B, T) is not padding either."""
    padding = tokens.eq(padding_idx)
    counts = tokens.size(1) - padding.sum(dim=1)
    padded = bool(padding.any())
    at_end = torch.equal(padding, torch.arange(tokens.size(1)) >= counts.unsqueeze(1))
    packs = padded and at_end and int(counts.min()) > 0
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0)) if packs else None
    predicted = None if target is None else _predicted(target.ne(padding_idx), padding, target, starts)
    return Layout(
        padded,
        counts.int() if padded and at_end else None,
        tuple(counts.tolist()) if packs else None,
        None if starts is None else starts.int(),
        padding.logical_not().flatten().nonzero().squeeze(1) if packs else None,
        predicted,
        reads_padding=target is None or bool((target.ne(padding_idx) & padding).any()),
    )


def _predicted(chosen: Tensor, padding: Tensor, target: Tensor, starts: Tensor | None) -> Predicted:
    places = chosen.flatten().nonzero().squeeze(1)
    count = len(places)
    others = (~chosen & ~padding).flatten().nonzero().squeeze(1)[: -count % ROWS]
    targets = torch.cat([target.flatten()[places], torch.full((len(others),), IGNORED)])
    places = torch.cat([places, others])
    packed = None
    if starts is not None:
        width = chosen.size(1)
        packed = starts[places // width] + places % width
    return Predicted(places, packed, targets, count)


def with_layouts(sample: Any, padding_idx: int, predicts_tokens: bool = False) -> Any:
    """``sample`` on the host with ``layouts`` of its model inputs, by their names.

    ``predicts_tokens``: the model predicts those tokens of ``net_input`` whose ``target`` is not padding. An input that
    brings a padding mask of its own has no layout.
    """
    if not isinstance(sample, dict) or not sample or "layouts" in sample:
        return sample
    layouts = {}
    for name, value in sample.items():
        if isinstance(value, dict) and torch.is_tensor(value.get("src_tokens")) and "padding_mask" not in value:
            target = sample.get("target") if predicts_tokens and name == "net_input" else None
            layout = layout_of_tokens(value["src_tokens"], padding_idx, target)
            types = value.get("token_type_ids")
            if types is not None and types.numel():
                layout = replace(layout, types=(int(types.min()), int(types.max())))
            layouts[name] = layout
    return {**sample, "layouts": layouts} if layouts else sample


class LayoutCollater:
    """``collate`` (items to a sample), whose samples get their ``layouts``; see `with_layouts`."""

    def __init__(self, collate: Callable[[list[Any]], Any], padding_idx: int, predicts_tokens: bool) -> None:
        self._collate, self._padding_idx, self._predicts_tokens = collate, padding_idx, predicts_tokens

    def __call__(self, items: list[Any]) -> Any:
        return with_layouts(self._collate(items), self._padding_idx, self._predicts_tokens)


def layout_of(sample: dict[str, Any], name: str = "net_input") -> Layout | None:
    """The layout of the input ``name`` of a sample that is where the model is.

    None where there is none, and on the CPU: there looking costs nothing, and rows are not filled up.
    """
    layout = sample.get("layouts", {}).get(name)
    return layout if layout is not None and sample[name]["src_tokens"].device.type != "cpu" else None
