"""Which registry belongs to which group of the configuration, and the configuration class behind a component's name."""

from __future__ import annotations

from typing import Any

from fairseq.registry import (
    ARCHITECTURE_MODELS,
    ARCHITECTURES,
    BPES,
    CRITERIONS,
    LR_SCHEDULERS,
    MODELS,
    OPTIMIZERS,
    SCORERS,
    TASKS,
    TOKENIZERS,
    Registry,
)

GROUPS: dict[str, Registry[Any]] = {
    "task": TASKS,
    "criterion": CRITERIONS,
    "optimizer": OPTIMIZERS,
    "lr_scheduler": LR_SCHEDULERS,
    "scoring": SCORERS,
    "bpe": BPES,
    "tokenizer": TOKENIZERS,
}


def model_config_class(name: str) -> type | None:
    """The configuration class of an architecture or model; None for a plugin model that has none. Imports no model."""
    if name in ARCHITECTURE_MODELS:
        return MODELS.config_class(ARCHITECTURE_MODELS[name])
    if name in MODELS and name not in ARCHITECTURES:
        return MODELS.config_class(name)
    found = ARCHITECTURES.config_class(name)
    return found if found is not None or name not in MODELS else MODELS.config_class(name)


def component_config_class(group: str, name: str) -> type | None:
    """The configuration class of ``group``'s component ``name`` (ConfigError or OutOfScopeError if there is none)."""
    return model_config_class(name) if group == "model" else GROUPS[group].config_class(name)
