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
    accepts_loss_kwargs = False  # losses are means over what they are given
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

    def get_output_embeddings(self) -> None:
        """None: the head uses the token embeddings, or has weights of its own."""

    def resize_token_embeddings(self, *arguments: Any, **words: Any) -> Any:
        raise NotImplementedError("the vocabulary of a fairseq encoder is fixed: it is part of the checkpoint")

    def _encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        output_hidden_states: bool | None,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...] | None]:
        """Features (B, T, C), padding (B, T), and the states of all layers if asked for."""
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if attention_mask is None:
            attention_mask = (input_ids != self.config.pad_token_id).long()
        states = self.encoder(input_ids, attention_mask, token_type_ids, position_ids)
        return states[-1], attention_mask == 0, states if wanted else None

    def _given(self, output: Any, return_dict: bool | None) -> Any:
        as_dict = getattr(self.config, "return_dict", True) if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()


class FairseqModel(FairseqPreTrainedModel):
    def __init__(self, config: FairseqConfig) -> None:
        super().__init__(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """``last_hidden_state`` (B, T, C). ``attention_mask`` (B, T) is 0 at padding; default: where the padding symbol is.

        ``token_type_ids`` and ``position_ids`` are (B, T), too.
        """
        x, _, states = self._encode(input_ids, attention_mask, token_type_ids, position_ids, output_hidden_states)
        return self._given(BaseModelOutput(x, hidden_states=states), return_dict)


class FairseqForMaskedLM(FairseqPreTrainedModel):
    def __init__(self, config: FairseqConfig) -> None:
        super().__init__(config)
        self.lm_head = LMHead(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """``logits`` (B, T, V); the mean ``loss`` over ``labels`` (B, T) that are not -100."""
        x, _, states = self._encode(input_ids, attention_mask, token_type_ids, position_ids, output_hidden_states)
        logits = self.lm_head(x, self.encoder.embed_tokens.weight)
        return self._given(MaskedLMOutput(_token_loss(logits, labels), logits, states), return_dict)


def _token_loss(logits: Tensor, labels: Tensor | None) -> Tensor | None:
    return None if labels is None else F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


class _WithHead(FairseqPreTrainedModel):
    kind = "classification"

    def __init__(self, config: FairseqConfig) -> None:
        super().__init__(config)
        stored = config.head if config.head and config.head["kind"] == self.kind else {}
        classes = 2 if self.kind == "span" else config.num_labels or 2
        self.classifier = TaskHead(config, {**HEAD, **stored, "classes": classes, "kind": self.kind})
        self.post_init()


class FairseqForSequenceClassification(_WithHead):
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """``logits`` (B, K); with ``labels`` the loss of ``config.problem_type``.

        By default that is the mean squared error for one class, cross-entropy for integers (B,), and a binary cross-entropy
        for numbers (B, K).
        """
        x, padding, states = self._encode(input_ids, attention_mask, token_type_ids, position_ids, output_hidden_states)
        logits = self.classifier(x, padding)
        loss = None if labels is None else self._loss(logits.float(), labels)
        return self._given(SequenceClassifierOutput(loss, logits, states), return_dict)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        usual = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
        problem = self.config.problem_type or ("regression" if logits.size(-1) == 1 else usual)
        if problem == "regression":
            return F.mse_loss(logits.flatten(), labels.flatten().float())
        if problem == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels.float())
        return F.cross_entropy(logits, labels.flatten())


class FairseqForTokenClassification(_WithHead):
    kind = "token"

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """``logits`` (B, T, K); the mean ``loss`` over ``labels`` (B, T) that are not -100."""
        x, padding, states = self._encode(input_ids, attention_mask, token_type_ids, position_ids, output_hidden_states)
        logits = self.classifier(x, padding)
        return self._given(TokenClassifierOutput(_token_loss(logits, labels), logits, states), return_dict)


class FairseqForQuestionAnswering(_WithHead):
    kind = "span"

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """``start_logits`` and ``end_logits`` (B, T); the mean of both losses for ``start_positions``, ``end_positions`` (B,).

        Positions outside the text count nothing.
        """
        x, padding, states = self._encode(input_ids, attention_mask, token_type_ids, position_ids, output_hidden_states)
        start, end = self.classifier(x, padding).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = (_place_loss(start, start_positions) + _place_loss(end, end_positions)) / 2
        return self._given(QuestionAnsweringModelOutput(loss, start, end, states), return_dict)


def _place_loss(logits: Tensor, places: Tensor) -> Tensor:
    outside = logits.size(1)
    return F.cross_entropy(logits.float(), places.flatten().clamp(0, outside), ignore_index=outside)


AUTO = {  # the class of transformers -> ours
    "AutoConfig": FairseqConfig,
    "AutoModel": FairseqModel,
    "AutoModelForMaskedLM": FairseqForMaskedLM,
    "AutoModelForSequenceClassification": FairseqForSequenceClassification,
    "AutoModelForTokenClassification": FairseqForTokenClassification,
    "AutoModelForQuestionAnswering": FairseqForQuestionAnswering,
}
