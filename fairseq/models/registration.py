"""Registering and building models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf, open_dict

from fairseq.errors import ConfigError
from fairseq.models.architectures import model_name_of, register_model_architecture
from fairseq.models.fairseq_model import BaseFairseqModel
from fairseq.registry import ARCHITECTURE_MODELS, ARCHITECTURES, MODELS, RegistryView

M = TypeVar("M", bound=type[BaseFairseqModel])


def register_model(name: str, dataclass: type | None = None) -> Callable[[M], M]:
    """Class decorator: the model becomes available as ``name``; with a dataclass also as an architecture of that name."""

    def add(cls: M) -> M:
        MODELS.register(name, dataclass=dataclass, base=BaseFairseqModel)(cls)
        if dataclass is not None and name not in ARCHITECTURES:
            register_model_architecture(name, name)(_fill_nothing)
        return cls

    return add


def _fill_nothing(args: Any) -> None:
    """The architecture of a model with a dataclass: its defaults are filled by ``build_model``."""


def build_model(cfg: Any, task: Any, from_checkpoint: bool = False) -> BaseFairseqModel:
    """Build the model that ``cfg`` (the ``model`` section, or a flat Namespace) names in ``_name`` or ``arch``.

    The architecture fills the missing keys of ``cfg`` in place: the filled section is what a checkpoint stores.
    Raises ConfigError for an unknown name and OutOfScopeError for what this project does not do.
    """
    name = getattr(cfg, "_name", None) or getattr(cfg, "arch", None)
    if not name and isinstance(cfg, DictConfig) and len(cfg) == 1:
        name = str(next(iter(cfg)))  # a section nested in its own name
        cfg = cfg[name]
    if not name:
        raise ConfigError(f"the model section names no model; known: {', '.join(ARCHITECTURES.names())}")
    model_name = model_name_of(name)
    cls = MODELS.get(model_name)
    if name in ARCHITECTURES:
        ARCHITECTURES.get(name)(cfg)
    config = MODELS.config_class(model_name)
    if config is not None and isinstance(cfg, DictConfig) and ARCHITECTURES.registered().get(name) is _fill_nothing:
        _fill_defaults(cfg, config)
    return cls.build_model(cfg, task)


def _fill_defaults(cfg: DictConfig, config: type) -> None:
    """Give ``cfg`` the defaults of the dataclass ``config`` that it lacks, interpolations left to the root."""
    defaults = OmegaConf.to_container(OmegaConf.structured(config), resolve=False)
    assert isinstance(defaults, dict)
    with open_dict(cfg):
        for key, value in defaults.items():
            if key not in cfg:
                cfg[key] = value


MODEL_REGISTRY = RegistryView(MODELS)
MODEL_DATACLASS_REGISTRY = RegistryView(MODELS, MODELS.config_class)
ARCH_MODEL_REGISTRY = RegistryView(ARCHITECTURES, lambda arch: MODELS.get(ARCHITECTURE_MODELS[arch]))
ARCH_MODEL_NAME_REGISTRY = RegistryView(ARCHITECTURES, ARCHITECTURE_MODELS.__getitem__)
ARCH_CONFIG_REGISTRY = RegistryView(ARCHITECTURES)
ARCH_MODEL_INV_REGISTRY = RegistryView(
    MODELS, lambda model: [arch for arch in ARCHITECTURES.names() if ARCHITECTURE_MODELS.get(arch) == model]
)
