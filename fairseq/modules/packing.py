"""Hidden states that are not computed: padding, and what nothing reads.

Norms, linear maps, dropout and channel mixers work row by row, so they give the same on (1, N, C) rows of non-padding
tokens as on (B, T, C), without the work on padding. Only what looks from one token to another needs to know where
sequences begin and end. And after the last layer's attention nothing looks at other tokens any more, so that only what
is read has to go on.

Legend: B batch, T tokens of the longest sequence, C channels, N non-padding tokens of the batch, R rows that are read.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fairseq.layout import Layout


@dataclass(frozen=True)
class Rows:
    """Which hidden states of a (B, T) batch are computed in one pass, and how they lie in memory.

    They `enter` the layers as (B, T, C), or packed as (1, N, C); the last layer, if `narrow` found that it pays, gives
    (1, R, C); they `exit` as (B, T, C), zero where nothing was computed.

    ``padding`` (B, T) is what layers have to leave out, None where there is none; ``lengths`` are those of the packed
    sequences; ``packed`` (N,) are the places of their tokens in the flattened batch; ``read`` (B, T) says what is read,
    None: everything; ``kept`` (R,) are the rows of the hidden states that the last layer gives. What is to be read, padded
    and packed may have been known beforehand: then ``layout`` is where from.
    """

    shape: torch.Size
    padding: Tensor | None = None
    lengths: tuple[int, ...] | None = None
    packed: Tensor | None = None
    read: Tensor | None = None
    kept: Tensor | None = None
    layout: Layout | None = None

    @classmethod
    def plan(cls, padding: Tensor, read: Tensor | None = None, pack_below: float = 0.0) -> Rows:
        """The rows of a batch with ``padding`` (B, T; True = padding) of which ``read`` (B, T) will be read.

        It is packed when at most the fraction ``pack_below`` of it are non-padding tokens, unless padding is read too;
        padding comes before other tokens; a sequence has nothing else; on other devices than the CPU, which would
        have to wait for the lengths; in compiled graphs, whose shapes must not change; and with ``FAIRSEQ_NATIVE=0``.
        """
        read = None if read is None else read.expand(padding.shape)
        if read is not None and pack_below > 0 and _looks_at(padding):
            kept = ~padding
            counts = kept.sum(dim=1)
            sparse = int(counts.min()) > 0 and int(counts.sum()) <= pack_below * padding.numel()
            if sparse and not bool((kept[:, 1:] & padding[:, :-1]).any()) and not bool((read & padding).any()):
                places = kept.reshape(-1).nonzero().squeeze(1)
                return cls(padding.shape, None, tuple(counts.tolist()), places, read)
        return cls(padding.shape, some(padding), read=read)

    @classmethod
    def known(cls, padding: Tensor, read: Tensor | None, layout: Layout, pack_below: float) -> Rows:
        """The same for a batch of which the host knows the ``layout``, so that no device need be asked.

        ``read`` may also be the places of the predicted tokens, which `narrow` then knows.
        """
        packed = None if read is None or layout.reads_padding else layout.packed
        if packed is not None and len(packed) <= pack_below * padding.numel():
            return cls(padding.shape, None, layout.lengths, packed, read, layout=layout)
        return cls(padding.shape, padding if layout.padded else None, read=read, layout=layout)

    def enter(self, x: Tensor) -> Tensor:
        """(B, T, ...) as the layers get it: (1, N, ...) when packed."""
        return x if self.packed is None else take(x, self.packed)

    def narrow(self, below: float) -> Rows:
        """These rows, for a last layer that gives only what is read, if that is less than the fraction ``below``.

        Unless the host knows them, everything on other devices than the CPU, in compiled graphs, and with
        ``FAIRSEQ_NATIVE=0``.
        """
        if self.read is None or below <= 0:
            return self
        predicted = None if self.layout is None else self.layout.predicted
        if predicted is not None and self.read is predicted.places:
            kept, computed = predicted.places, math.prod(self.shape)
            if self.packed is not None and predicted.packed is not None:
                kept, computed = predicted.packed, len(self.packed)
            return replace(self, kept=kept) if len(kept) < below * computed else self
        if not _looks_at(self.read):
            return self
        read = self.enter(self.read)
        kept = read.reshape(-1).nonzero().squeeze(1)
        return replace(self, kept=kept) if len(kept) < below * read.numel() else self

    def exit(self, x: Tensor) -> Tensor:
        """What the layers gave as (B, T, C), zero where nothing was computed."""
        places = self._places()
        if places is None:
            return x
        return x.new_zeros(math.prod(self.shape), x.size(-1)).index_copy(0, places, x[0]).unflatten(0, self.shape)

    def _places(self) -> Tensor | None:
        """Where in the flattened batch that lies which the layers gave; None: it is all of the batch."""
        if self.packed is None or self.kept is None:
            return self.packed if self.kept is None else self.kept
        return self.packed[self.kept]


def take(x: Tensor, places: Tensor) -> Tensor:
    """(B, T, ...) to (1, R, ...): the rows at ``places`` (R,) of the flattened batch."""
    return x.flatten(0, 1).index_select(0, places).unsqueeze(0)


def some(padding: Tensor) -> Tensor | None:
    """``padding`` only if something in it is True: attention is quicker without a mask.

    Looking costs one transfer from the device a pass; under ``torch.compile`` it would break the graph, so there the
    mask is kept as it is.
    """
    if torch.compiler.is_compiling() or padding.device.type == "meta":
        return padding
    return padding if bool(padding.any()) else None


def _looks_at(mask: Tensor) -> bool:
    """Whether shapes may depend on what is in ``mask``."""
    if torch.compiler.is_compiling() or mask.device.type != "cpu" or not mask.numel():
        return False
    return os.environ.get("FAIRSEQ_NATIVE") != "0"
