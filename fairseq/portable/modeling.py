"""Classes for Transformers over ``fairseq.portable.encoder``: features, masked LM, classification of texts and tokens, spans.

Legend: B batch, T tokens, C channels, V vocabulary, K classes.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from fairseq.portable.encoder import Encoder, LMHead, TaskHead

DEFAULTS: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "embedding_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "linear_bias": True,
    "pre_norm": False,
    "final_norm": True,
    "embedding_norm": True,
    "embedding_scale": 1.0,
    "normalize_embeddings": False,
    "zero_masking": False,
    "zero_padding": True,
    "attention_bias": "none",
    "token_mixer": {"name": "self_attention", "scale": None},
    "channel_mixer": {"name": "feed_forward"},
    "positions": {"name": "learned", "offset": None, "by_column": False},
    "lm_head": {"name": "roberta"},
    "tied": True,
    "hidden_dropout": 0.1,
    "residual_dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "head": None,
}
HEAD = {"kind": "classification", "pooling": "first", "activation": "tanh", "dropout": 0.1, "input_dropout": True}


class FairseqConfig(PretrainedConfig):
    """Sizes and parts of an encoder; ``head`` describes the task head that was trained with it, if there is one."""

    model_type = "fairseq_encoder"

    def __init__(self, **settings: Any) -> None:
        for name, default in DEFAULTS.items():
            setattr(self, name, settings.pop(name, default))
        settings = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "tie_word_embeddings": False} | settings
        super().__init__(**settings)


class FairseqPreTrainedModel(PreTrainedModel):
    config_class = FairseqConfig
    base_model_prefix = "fairseq"
    _keep_in_fp32_modules = ["forward_ssm", "backward_ssm"]  # poles and steps are exponents
    _keep_in_fp32_modules_strict = ["forward_ssm", "backward_ssm"]

    def __init__(self, config: FairseqConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        self.encoder.embed_tokens = value

    def _encode(self, input_ids: Tensor, attention_mask: Tensor | None, extra: dict[str, Any]) -> dict[str, Any]:
        """Features (B, T, C) and padding (B, T), and the states of all layers if ``extra`` asks for them."""
        wanted = extra.pop("output_hidden_states", None)
        wanted = self.config.output_hidden_states if wanted is None else wanted
        states = self.encoder(
            input_ids, attention_mask, extra.pop("token_type_ids", None), extra.pop("position_ids", None)
        )
        unknown = [
            name
            for name, value in extra.items()
            if value is not None and name not in ("return_dict", "output_attentions")
        ]
        if unknown:
            raise TypeError(f"a fairseq encoder takes no argument {unknown[0]!r}")
        padding = input_ids == self.config.pad_token_id if attention_mask is None else attention_mask == 0
        return {"features": states[-1], "padding": padding, "states": states if wanted else None}

    def _given(self, output: Any, extra: dict[str, Any]) -> Any:
        return output.to_tuple() if extra.get("return_dict") is False else output


class FairseqModel(FairseqPreTrainedModel):
    def __init__(self, config: FairseqConfig) -> None:
        super().__init__(config)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **extra: Any) -> Any:
        """``last_hidden_state`` (B, T, C). ``attention_mask`` (B, T) is 0 at padding; default: where the padding symbol is.

        Beside it ``token_type_ids`` and ``position_ids`` (B, T), ``output_hidden_states`` and ``return_dict``.
        """
        found = self._encode(input_ids, attention_mask, extra)
        return self._given(BaseModelOutput(found["features"], hidden_states=found["states"]), extra)


class FairseqForMaskedLM(FairseqPreTrainedModel):
    def __init__(self, config: FairseqConfig) -> None:
        super().__init__(config)
        self.lm_head = LMHead(config)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **extra: Any
    ) -> Any:
        """``logits`` (B, T, V); the mean ``loss`` over ``labels`` (B, T) that are not -100."""
        found = self._encode(input_ids, attention_mask, extra)
        logits = self.lm_head(found["features"], self.encoder.embed_tokens.weight)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return self._given(MaskedLMOutput(loss, logits, found["states"]), extra)


class _WithHead(FairseqPreTrainedModel):
    kind = "classification"

    def __init__(self, config: FairseqConfig) -> None:
        super().__init__(config)
        stored = config.head if config.head and config.head["kind"] == self.kind else {}
        self.classifier = TaskHead(config, {**HEAD, "classes": self._classes(config), **stored, "kind": self.kind})
        self.post_init()

    def _classes(self, config: FairseqConfig) -> int:
        return config.num_labels or 2

    def _logits(self, input_ids: Tensor, attention_mask: Tensor | None, extra: dict[str, Any]) -> tuple[Tensor, Any]:
        found = self._encode(input_ids, attention_mask, extra)
        return self.classifier(found["features"], found["padding"]), found["states"]


class FairseqForSequenceClassification(_WithHead):
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **extra: Any
    ) -> Any:
        """``logits`` (B, K); with ``labels`` (B,) the cross-entropy, or for one class the mean squared error."""
        logits, states = self._logits(input_ids, attention_mask, extra)
        loss = None
        if labels is not None and logits.size(-1) == 1:
            loss = F.mse_loss(logits.squeeze(-1).float(), labels.float())
        elif labels is not None:
            loss = F.cross_entropy(logits.float(), labels)
        return self._given(SequenceClassifierOutput(loss, logits, states), extra)


class FairseqForTokenClassification(_WithHead):
    kind = "token"

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **extra: Any
    ) -> Any:
        """``logits`` (B, T, K); the mean ``loss`` over ``labels`` (B, T) that are not -100."""
        logits, states = self._logits(input_ids, attention_mask, extra)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return self._given(TokenClassifierOutput(loss, logits, states), extra)


class FairseqForQuestionAnswering(_WithHead):
    kind = "span"

    def _classes(self, config: FairseqConfig) -> int:
        return 2

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **extra: Any,
    ) -> Any:
        """``start_logits`` and ``end_logits`` (B, T); the mean of both losses for ``start_positions``, ``end_positions`` (B,)."""
        logits, states = self._logits(input_ids, attention_mask, extra)
        start, end = logits.unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = (F.cross_entropy(start.float(), start_positions) + F.cross_entropy(end.float(), end_positions)) / 2
        return self._given(QuestionAnsweringModelOutput(loss, start, end, states), extra)


AUTO = {  # the class of transformers -> ours
    "AutoConfig": FairseqConfig,
    "AutoModel": FairseqModel,
    "AutoModelForMaskedLM": FairseqForMaskedLM,
    "AutoModelForSequenceClassification": FairseqForSequenceClassification,
    "AutoModelForTokenClassification": FairseqForTokenClassification,
    "AutoModelForQuestionAnswering": FairseqForQuestionAnswering,
}
