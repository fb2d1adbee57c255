"""RoBERTa: an encoder, a masked-LM head, and heads for sentence tasks.

Legend: B batch, T tokens, C channels, V vocabulary, N masked tokens, L layers.
"""

from __future__ import annotations

import argparse
import inspect
import logging
from dataclasses import replace
from typing import Any

import torch
from omegaconf import DictConfig, open_dict
from torch import Tensor, nn

from fairseq.dataclass.base import field_specs
from fairseq.dataclass.flags import gen_parser_from_dataclass
from fairseq.errors import ConfigError
from fairseq.models.fairseq_model import BaseFairseqModel, FairseqEncoder, FairseqEncoderModel
from fairseq.models.hub import FamilyBPE, load_pretrained
from fairseq.models.loading import parse_layers
from fairseq.models.roberta import factory
from fairseq.models.roberta.addresses import ROBERTA
from fairseq.models.roberta.config import RobertaConfig
from fairseq.models.roberta.contracts import check_unused
from fairseq.models.roberta.encoder import RobertaEncoder
from fairseq.models.roberta.hub_interface import RobertaHubInterface
from fairseq.models.roberta.presets import DEFAULT_MAX_POSITIONS, base_architecture
from fairseq.models.roberta.upgrade import (
    rename_legacy,
    upgrade_heads,
)
from fairseq.modules.initialization import init_bert_params
from fairseq.modules.lm_head import RobertaLMHead
from fairseq.modules.task_heads import RobertaClassificationHead
from fairseq.overrides import accepts, hooked, overridden, supports
from fairseq.registry import BPES, MODELS

logger = logging.getLogger(__name__)


@MODELS.register("roberta", dataclass=RobertaConfig)
class RobertaModel(FairseqEncoderModel):
    """RoBERTa (Liu et al. 2019, arXiv 1907.11692) and its variants; see ``RobertaConfig``.

    Deviations from the original: new classification heads are put on the device and in the precision of the model;
    spectral-norm heads can be loaded again.
    """

    takes_targets = True
    takes_layout = True
    hands_on = True

    def __init__(self, args: Any, encoder: RobertaEncoder) -> None:
        super().__init__(encoder)
        self.args = args
        # A second time over the encoder, as in the original; this one also reaches the LM head.
        self.apply(init_bert_params)
        self.classification_heads = nn.ModuleDict()

    @property
    def computes_loss(self) -> bool:
        """Whether ``forward`` with ``masked_targets`` gives the loss; not where a plugin replaced part of the way.

        Nor where a hook wants to see logits, or to change them.
        """
        encoder = self.encoder
        parts: tuple[Any, ...] = (self, encoder, encoder.lm_head)
        if any(map(hooked, parts)):
            return False
        return (
            supports(self, "takes_targets", "forward")
            and not overridden(self, BaseFairseqModel, "get_targets")
            and supports(encoder, "takes_targets", "forward", "output_layer")
            and supports(encoder.lm_head, "takes_targets", "forward")
        )

    @property
    def uses_layout(self) -> bool:
        """Whether ``forward`` may be given a layout (`fairseq.layout`); not where a plugin replaced part of the way."""
        inner = getattr(self.encoder, "sentence_encoder", None)
        return (
            supports(self, "takes_layout", "forward")
            and supports(self.encoder, "takes_layout", "forward", "extract_features", "_features")
            and supports(inner, "takes_layout", "forward", "embed")
        )

    @property
    def uses_places(self) -> bool:
        """Whether ``masked_tokens`` may be those of a layout, where ``forward`` may be given one."""
        encoder = self.encoder
        return (
            not overridden(self, BaseFairseqModel, "get_targets")
            and supports(encoder, "takes_places", "output_layer")
            and supports(encoder.lm_head, "takes_places", "forward")
        )

    @classmethod
    def hub_models(cls) -> dict[str, Any]:
        return ROBERTA

    @classmethod
    def add_args(cls, parser: argparse.ArgumentParser) -> None:
        """The flags of ``RobertaConfig``, for plugins that extend them."""
        gen_parser_from_dataclass(parser, RobertaConfig(), delete_default=True)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> RobertaModel:
        base_architecture(args)
        _settle_sizes(args, task)
        return cls(args, RobertaEncoder(args, task.source_dictionary))

    def forward(  # type: ignore[override]
        self,
        src_tokens: Tensor,
        features_only: bool = False,
        return_all_hiddens: bool = False,
        classification_head_name: str | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """As ``RobertaEncoder.forward``; naming a head gives that head's output on the features."""
        if classification_head_name is not None:
            head: Any = self._head(classification_head_name)
            if not accepts(head.forward, "padding_mask"):  # a plugin's head may know of features alone
                x, extra = self.encoder(src_tokens, True, return_all_hiddens, **kwargs)
                return head(x), extra
            given = kwargs.get("padding_mask")
            padding = src_tokens.eq(self.encoder.dictionary.pad()) if given is None else given.bool()
            known = supports(head, "reads", "forward") and supports(self.encoder, "takes_targets", "forward")
            read = head.reads(padding) if known else None
            if read is not None:
                kwargs.setdefault("read", read)
            layout = kwargs.get("layout")
            if layout is not None:
                skips = kwargs.get("read") is read is not None and supports(head, "skips_padding", "reads")
                kwargs["layout"] = replace(layout, predicted=None, reads_padding=not skips)
            x, extra = self.encoder(src_tokens, True, return_all_hiddens, **kwargs)
            return head(x, padding_mask=padding), extra
        return self.encoder(src_tokens, features_only, return_all_hiddens, **kwargs)

    def extract_features(self, src_tokens: Tensor, **kwargs: Any) -> tuple[Tensor, dict[str, Any]]:
        return self(src_tokens, features_only=True, **kwargs)

    def _config(self) -> RobertaConfig:
        """The configuration that the encoder was built from, which a plugin's own encoder may not keep."""
        config = getattr(self.encoder, "config", None)
        return config if isinstance(config, RobertaConfig) else factory.configuration(self.args)

    def _head(self, name: str) -> nn.Module:
        if name not in self.classification_heads:
            known = ", ".join(self.classification_heads) or "none"
            raise ConfigError(f"the model has no classification head {name!r}; register it first (known: {known})")
        return self.classification_heads[name]

    def register_classification_head(
        self, name: str, num_classes: int | None = None, inner_dim: int | None = None, **more: Any
    ) -> None:
        """Add (or replace) the head ``name``, in torch's default initialization, where the model is.

        ``more`` is for subclasses that override this and hand on what they were given.
        """
        check_unused(self, more, strict=not overridden(self, RobertaModel, "register_classification_head"))
        if num_classes is None or num_classes < 1:
            raise ConfigError(
                f"classification head {name!r}: num_classes must be at least 1, but is {num_classes} instead"
            )
        if name in self.classification_heads:
            old: Any = self.classification_heads[name]
            before = [getattr(getattr(old, part, None), "out_features", None) for part in ("out_proj", "dense")]
            if before != [num_classes, inner_dim]:
                logger.warning(
                    "re-registering head %r with num_classes %s (before: %s) and inner_dim %s (before: %s)",
                    name,
                    num_classes,
                    before[0],
                    inner_dim,
                    before[1],
                )
        head = factory.build_classification_head(self._config(), num_classes, inner_dim)
        self.attach_head(name, head)

    def register_span_head(self, name: str) -> None:
        """Add (or replace) the head ``name`` that gives (B, T, 2): logits of beginning and end at each token."""
        self.attach_head(name, factory.build_span_head(self._config()))

    def register_token_head(self, name: str, num_classes: int) -> None:
        """Add (or replace) the head ``name`` that gives (B, T, ``num_classes``): logits of each token's label."""
        self.attach_head(name, factory.build_token_head(self._config(), num_classes))

    def attach_head(self, name: str, head: nn.Module) -> None:
        """Add (or replace) the head ``name``: any module on features (B, T, C); it moves to where the model is."""
        like = next(self.encoder.parameters())
        self.classification_heads[name] = head.to(device=like.device, dtype=like.dtype)

    def get_normalized_probs(self, net_output: Any, log_probs: bool, sample: dict[str, Any] | None = None) -> Tensor:
        """(Log-)probabilities of ``net_output[0]`` in float32."""
        normalize = torch.log_softmax if log_probs else torch.softmax
        return normalize(net_output[0], dim=-1, dtype=torch.float32)

    @property
    def supported_targets(self) -> set[str]:
        return {"self"}

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        model_name_or_path: str,
        checkpoint_file: str = "model.pt",
        data_name_or_path: str = ".",
        bpe: str | None = FamilyBPE("gpt2"),
        **kwargs: Any,
    ) -> RobertaHubInterface:
        """Load a checkpoint with its dictionary and BPE, on the CPU, in training mode (call ``eval()``).

        ``model_name_or_path`` is a directory or a published name; ``data_name_or_path`` a directory with ``dict.txt``,
        relative to the model's when it begins with a dot; ``bpe=None`` works on ids only. Other keywords override the
        stored configuration by key name. Without ``bpe`` that of the checkpoint is used, or GPT-2's if it stores none.
        A folder of Transformers (RoBERTa, BERT, or written by ``fairseq-convert``) is taken, too.
        """
        given = {} if isinstance(bpe, FamilyBPE) else {"bpe": bpe}
        return cls.from_hub(model_name_or_path, checkpoint_file, data_name_or_path, **given, **kwargs)

    @classmethod
    def from_hub(
        cls, model_name_or_path: str, checkpoint_file: str, data_name_or_path: str | None, **overrides: Any
    ) -> RobertaHubInterface:
        """``from_pretrained`` without defaults: the checkpoint's own data (None) and, unless ``bpe`` is given, its BPE.

        A checkpoint that knows of no BPE gets the model family's.
        """
        loaded = load_pretrained(
            model_name_or_path,
            checkpoint_file,
            data_name_or_path,
            cls.hub_models(),
            load_checkpoint_heads=True,
            **overrides,
        )
        bpe = getattr(loaded.cfg, "bpe", None)
        if "bpe" in overrides and overrides["bpe"] is None:
            bpe = None
        elif bpe is None and not loaded.foreign:
            family = inspect.signature(cls.from_pretrained).parameters["bpe"].default
            bpe = _bpe_settings(family, loaded.overrides)
        return RobertaHubInterface(loaded.cfg, loaded.task, loaded.models[0], bpe)

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        prefix = f"{name}." if name else ""
        rename_legacy(state_dict, prefix)
        super().upgrade_state_dict_named(state_dict, name)
        upgrade_heads(self, state_dict, prefix)

    def load_state_dict(  # type: ignore[override]
        self, state_dict: dict[str, Any], strict: bool = True, model_cfg: Any = None, args: Any = None
    ) -> Any:
        """As for every model; layers are kept as this model's own configuration says when no other is given."""
        chosen = model_cfg if model_cfg is not None else args
        return super().load_state_dict(state_dict, strict, self.args if chosen is None else chosen)


def _settle_sizes(args: Any, task: Any) -> None:
    """Fill max_positions (from ``tokens_per_sample``, the task, or 512) and the number of layers that are kept."""
    if getattr(args, "max_positions", None) is None:
        limit = getattr(args, "tokens_per_sample", None) or task.max_positions() or DEFAULT_MAX_POSITIONS
        _set(args, "max_positions", min(limit) if isinstance(limit, (tuple, list)) else limit)
    keep = getattr(args, "encoder_layers_to_keep", None)
    if keep:
        _set(args, "encoder_layers", len(parse_layers(keep)))


def _bpe_settings(name: str, values: dict[str, Any]) -> Any:
    """The settings of the BPE ``name``: its defaults, and what ``values`` has of them."""
    config = BPES.config_class(name)
    if config is None:
        return name
    known = {key: value for key, value in values.items() if key in field_specs(config)}
    return config(**{**known, "_name": name})


def _set(args: Any, name: str, value: Any) -> None:
    if isinstance(args, DictConfig):
        with open_dict(args):
            setattr(args, name, value)
    else:
        setattr(args, name, value)


__all__ = [
    "FairseqEncoder",
    "RobertaClassificationHead",
    "RobertaEncoder",
    "RobertaLMHead",
    "RobertaModel",
    "init_bert_params",
]
