"""What plugins use to declare themselves: names that a setting may take as enums, and the decorator of scorers.

There are no built-in scorers: they judge generated text, which is out of scope.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

from fairseq.registry import SCORERS


class StrEnum(str, Enum):
    """An enum whose members are their own value as a string."""

    def __str__(self) -> str:
        return str(self.value)


def ChoiceEnum(choices: Sequence[str]) -> Any:
    """An enum type with these members; configurations store the plain string."""
    return StrEnum("Choices", {name: name for name in choices})  # type: ignore[call-overload]


LOG_FORMAT_CHOICES = ChoiceEnum(["json", "none", "simple", "tqdm"])
DDP_BACKEND_CHOICES = ChoiceEnum(["c10d", "fully_sharded", "legacy_ddp", "no_c10d", "pytorch_ddp", "slowmo"])
DDP_COMM_HOOK_CHOICES = ChoiceEnum(["none", "fp16"])
DATASET_IMPL_CHOICES = ChoiceEnum(["raw", "lazy", "cached", "mmap", "fasta", "huffman"])
ZERO_SHARDING_CHOICES = ChoiceEnum(["none", "os"])
PIPELINE_CHECKPOINT_CHOICES = ChoiceEnum(["always", "never", "except_last"])
SHORTEN_METHOD_CHOICES = ChoiceEnum(["none", "truncate", "random_crop"])
SAMPLE_BREAK_MODE_CHOICES = ChoiceEnum(["none", "complete", "complete_doc", "eos"])


def register_scorer(name: str, dataclass: type | None = None) -> Callable[[Any], Any]:
    """Class decorator: the scorer becomes known as ``name``."""
    return SCORERS.register(name, dataclass=dataclass)
