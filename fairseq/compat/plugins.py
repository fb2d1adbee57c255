"""What plugins use to declare themselves: names that a setting may take as enums, and the decorator of scorers.

There are no built-in scorers: they judge generated text, which is out of scope.
"""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

from fairseq.registry import (
    BPES,
    CRITERIONS,
    LR_SCHEDULERS,
    OPTIMIZERS,
    SCORERS,
    TOKENIZERS,
    Registry,
    RegistryView,
)


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
CLIP_GRAD_NORM_TYPE_CHOICES = ChoiceEnum(["global", "layer"])
GENERATION_CONSTRAINTS_CHOICES = ChoiceEnum(["ordered", "unordered"])
GENERATION_DECODING_FORMAT_CHOICES = ChoiceEnum(["unigram", "ensemble", "vote", "dp", "bs"])
PRINT_ALIGNMENT_CHOICES = ChoiceEnum(["hard", "soft"])
SAMPLE_BREAK_MODE_CHOICES = ChoiceEnum(["none", "complete", "complete_doc", "eos"])


def register_scorer(name: str, dataclass: type | None = None) -> Callable[[Any], Any]:
    """Class decorator: the scorer becomes known as ``name``."""
    return SCORERS.register(name, dataclass=dataclass)


BPE_REGISTRY = RegistryView(BPES)
TOKENIZER_REGISTRY = RegistryView(TOKENIZERS)
CRITERION_DATACLASS_REGISTRY = RegistryView(CRITERIONS, CRITERIONS.config_class)
OPTIMIZER_DATACLASS_REGISTRY = RegistryView(OPTIMIZERS, OPTIMIZERS.config_class)
LR_SCHEDULER_DATACLASS_REGISTRY = RegistryView(LR_SCHEDULERS, LR_SCHEDULERS.config_class)
TASK_CLASS_NAMES: set[str] = set()  # by which the original noticed that two tasks had one class name
MASK_LENGTH_CHOICES = ChoiceEnum(["subword", "word", "span-poisson"])

# By the name of the flag that chooses from it, as the original kept them; `setup_registry` adds those of plugins.
REGISTRIES: dict[str, dict[str, Any]] = {
    key: {
        "registry": RegistryView(registry),
        "default": None,
        "dataclass_registry": RegistryView(registry, registry.config_class),
    }
    for key, registry in {
        "criterion": CRITERIONS,
        "optimizer": OPTIMIZERS,
        "lr_scheduler": LR_SCHEDULERS,
        "bpe": BPES,
        "tokenizer": TOKENIZERS,
        "scoring": SCORERS,
    }.items()
}


def setup_registry(
    registry_name: str, base_class: type | None = None, default: str | None = None, required: bool = False
) -> tuple[Callable[..., Any], Callable[..., Any], RegistryView, RegistryView] | None:
    """(Build, register, names -> classes, names -> dataclasses) of a new kind of component, chosen by ``registry_name``.

    None where that kind is known already. ``build(cfg, *args)`` takes a name, a node or a Namespace; None chooses nothing
    unless the choice is ``required``.
    """
    key = registry_name.removeprefix("--").replace("-", "_")
    if key in REGISTRIES:
        return None
    registry: Registry[Any] = Registry(key)
    view, configs = RegistryView(registry), RegistryView(registry, registry.config_class)
    REGISTRIES[key] = {"registry": view, "default": default, "dataclass_registry": configs}

    def build(cfg: Any, *args: Any, **kwargs: Any) -> Any:
        if registry.chosen(cfg, key) is None and not required:
            return None
        entry, settings = registry.resolve(cfg, key)
        return getattr(entry, f"build_{key}", entry)(settings, *args, **kwargs)

    def register(name: str, dataclass: type | None = None) -> Callable[[Any], Any]:
        return registry.register(name, dataclass=dataclass, base=base_class)

    return build, register, view, configs


def set_defaults(args: Namespace, cls: Any) -> None:
    """Give ``args`` the defaults of the flags of ``cls`` that it lacks."""
    if not hasattr(cls, "add_args"):
        return
    parser = ArgumentParser(argument_default=SUPPRESS, allow_abbrev=False)
    cls.add_args(parser)
    for action in parser._actions:
        if action.dest is not SUPPRESS and action.default is not SUPPRESS and not hasattr(args, action.dest):
            setattr(args, action.dest, action.default)
