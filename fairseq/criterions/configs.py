"""The settings of the criterions. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq.dataclass.base import II, FairseqDataclass, option


@dataclass(kw_only=True)
class MaskedLmConfig(FairseqDataclass):
    """``masked_lm`` has no settings of its own; ``tpu`` is carried by old files."""

    tpu: bool = option(II("common.tpu"), "not supported: training on TPUs")
