"""Options of single data formats (torch-free)."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq.dataclass.base import FairseqDataclass, option


@dataclass(kw_only=True)
class PlainConfig(FairseqDataclass):
    """Files with one text or label a line."""

    regression_target: bool = option(False, "plain: labels are numbers (one or more a line), not names of classes")
    multi_label: bool = option(False, "plain: a line may have several labels, separated by spaces, or none", new=True)
    divide_labels_by: float = option(1.0, "plain: divide the numbers of --regression-target by this", new=True)
