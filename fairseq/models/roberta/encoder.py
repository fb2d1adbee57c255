"""RoBERTa's encoder with its masked-LM head: token ids to features and logits.

Legend: B batch, T tokens, C channels, V vocabulary, N masked tokens, L layers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.layout import Layout
from fairseq.models.fairseq_model import FairseqEncoder
from fairseq.models.roberta import factory
from fairseq.models.roberta.contracts import UNUSED, check_unused, run_old, takes_ids
from fairseq.models.roberta.presets import base_architecture
from fairseq.models.roberta.upgrade import (
    check_positions,
    check_vocabulary,
    extend_positions,
    upgrade_version,
)
from fairseq.modules.encoder import Encoder, padded_length
from fairseq.modules.initialization import exempt_biases_and_norms, init_bert_params
from fairseq.modules.positions import mask_out
from fairseq.overrides import binds, supports


class RobertaEncoder(FairseqEncoder):
    """Token ids (B, T) to features (B, T, C) and, through the LM head, to logits (B, T, V) or (N, V)."""

    takes_targets = True
    takes_layout = True
    takes_places = True

    def __init__(self, args: Any, dictionary: Any) -> None:
        super().__init__(dictionary)
        # Plugins come here directly, with only some of the values.
        base_architecture(args)
        self.args = args
        self.padding_idx = dictionary.pad()
        self.config = config = factory.configuration(args)
        self.self_masking = config.mask_prob if config.zero_masking else 0.0
        if type(self).build_encoder is RobertaEncoder.build_encoder:
            factory.check_memory(config, len(dictionary), self.padding_idx)
        embed_tokens: Any = self.build_embedding(len(dictionary), config.encoder_embed_dim, self.padding_idx)
        parts = (args, dictionary, embed_tokens)
        # Older plugins make their own embeddings.
        self.sentence_encoder: Any = self.build_encoder(*(parts if binds(self.build_encoder, *parts) else parts[:2]))
        # A plugin's encoder may have made a table of its own.
        table = getattr(self.sentence_encoder, "embed_tokens", embed_tokens)
        self.lm_head = self.build_lm_head(
            embed_dim=config.encoder_embed_dim,
            output_dim=len(dictionary),
            activation_fn=config.activation_fn,
            weight=None if config.untie_weights_roberta else table.weight,
        )
        if not config.decay_biases_and_norms:
            exempt_biases_and_norms(self)

    def build_embedding(self, vocab_size: int, embedding_dim: int, padding_idx: int) -> nn.Module:
        return factory.build_token_embedding(self.config, vocab_size, padding_idx)

    def build_encoder(self, args: Any, dictionary: Any, embed_tokens: nn.Module) -> nn.Module:
        # Read again: a plugin that overrides this may hand on other values than it was given.
        encoder = factory.build_encoder(factory.configuration(args), embed_tokens, dictionary.pad())
        encoder.apply(init_bert_params)
        return encoder

    def build_lm_head(
        self, embed_dim: int, output_dim: int, activation_fn: str, weight: nn.Parameter | None
    ) -> nn.Module:
        return factory.build_lm_head(self.config, output_dim, weight, self.padding_idx)

    def forward(  # type: ignore[override]
        self,
        src_tokens: Tensor,
        features_only: bool = False,
        return_all_hiddens: bool = False,
        masked_tokens: Tensor | None = None,
        padding_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        masked_targets: Tensor | None = None,
        read: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        layout: Layout | None = None,
        token_embeddings: Tensor | None = None,
        **more: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Logits (or features) and ``{"inner_states": L + 1 tensors (T, B, C) or None}``.

        ``padding_mask`` (B, T), True = padding, replaces the one derived from the pad symbol, even when all False.
        ``position_ids`` (B, T) are rows of the position table (the first token of a sequence has pad + 1).
        With ``masked_tokens`` (B, T) only those N positions are projected to the vocabulary; with their
        ``masked_targets`` (N,) too, the first result is the summed loss, where the head has it. With self-masking the
        inputs of a pass to logits are masked at random, in training and in evaluation; features never are.
        ``read`` (B, T) promises that features are read nowhere else: they may be zero there, see ``Encoder.forward``.
        ``token_type_ids`` (B, T) are for models that have types, where they are zero by default. ``layout`` is what the host
        knows of ``src_tokens``; ``masked_tokens`` may then be its places of predicted tokens. ``token_embeddings`` (B, T, C)
        take the place of those of ``src_tokens``. ``more`` is for an overridden `extract_features`; otherwise TypeError.
        """
        layout = layout if padding_mask is None else None
        masked = None if features_only else self._draw_mask(src_tokens)
        if masked is not None and token_embeddings is not None:
            token_embeddings = mask_out(token_embeddings, masked)
        given = _given(
            padding_mask=padding_mask,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            token_embeddings=token_embeddings,
        )
        if supports(self, "takes_layout", "extract_features"):
            check_unused(self, more, self.refuses_unused)
            if read is None and masked_tokens is not None and not features_only and self._projects_masked_only():
                read = masked_tokens
            x, extra = self._features(src_tokens, return_all_hiddens, given, masked, read, layout)
        else:
            if masked is not None and token_embeddings is None:
                given["token_embeddings"] = self.sentence_encoder.embed_tokens(src_tokens, masked)
            given |= {name: value for name, value in more.items() if value is not None and name not in UNUSED}
            x, extra = self.extract_features(src_tokens, return_all_hiddens=return_all_hiddens, **given)
        if not features_only:
            wanted = {} if masked_targets is None else {"targets": masked_targets}
            x = self.output_layer(x, masked_tokens=masked_tokens, **wanted)
        return x, extra

    def extract_features(
        self,
        src_tokens: Tensor,
        return_all_hiddens: bool = False,
        padding_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        token_embeddings: Tensor | None = None,
        **more: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Features (B, T, C), and the inner states as in ``forward``, whose arguments these are.

        Subclasses may override it: ``forward`` then calls it with those arguments that it was given.
        """
        check_unused(self, more, self.refuses_unused)
        given = _given(
            padding_mask=padding_mask,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            token_embeddings=token_embeddings,
        )
        return self._features(src_tokens, return_all_hiddens, given)

    def _features(
        self,
        src_tokens: Tensor,
        return_all_hiddens: bool,
        given: dict[str, Any],
        masked: Tensor | None = None,
        read: Tensor | None = None,
        layout: Layout | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """``given`` are those of the arguments of `extract_features` that are not None."""
        encoder = self.sentence_encoder
        if not isinstance(encoder, Encoder) and takes_ids(encoder):
            if masked is not None and "token_embeddings" not in given:
                given = {**given, "token_embeddings": encoder.embed_tokens(src_tokens, masked)}
            output = run_old(encoder, src_tokens, return_all_hiddens, given)
            return output.features, {"inner_states": output.inner_states}
        missing = padded_length(encoder) - src_tokens.size(1)
        if missing > 0:
            return self._padded_features(src_tokens, return_all_hiddens, given, masked, missing)
        padding_mask, position_ids, token_type_ids = map(given.get, ("padding_mask", "position_ids", "token_type_ids"))
        padding = src_tokens.eq(self.padding_idx) if padding_mask is None else padding_mask.bool()
        embed, tokens = encoder.embed_tokens, given.get("token_embeddings")
        if tokens is None:
            tokens = embed(src_tokens) if masked is None else embed(src_tokens, masked)
        # An encoder of a plugin may have neither of these arguments.
        extra: dict[str, Any] = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        if read is not None and supports(encoder, "selects", "forward"):
            extra["read"] = read
        if layout is not None:
            extra["layout"] = layout
        output = encoder(tokens, padding, position_ids, return_all_hiddens, **extra)
        return output.features, {"inner_states": output.inner_states}

    def _padded_features(
        self,
        src_tokens: Tensor,
        return_all_hiddens: bool,
        given: dict[str, Tensor],
        masked: Tensor | None,
        missing: int,
    ) -> tuple[Tensor, dict[str, Any]]:
        """`_features` with ``missing`` columns of padding more, of which nothing is returned."""
        length, given = src_tokens.size(1), dict(given)
        padding = F.pad(given.get("padding_mask", src_tokens.eq(self.padding_idx)).bool(), (0, missing), value=True)
        src_tokens = F.pad(src_tokens, (0, missing), value=self.padding_idx)
        given["padding_mask"] = padding
        if "token_type_ids" in given:
            given["token_type_ids"] = F.pad(given["token_type_ids"], (0, missing))
        if "position_ids" in given:
            beyond = self.sentence_encoder.embed_positions.ids(padding)[:, length:]
            given["position_ids"] = torch.cat([given["position_ids"].expand(len(padding), -1), beyond], dim=1)
        if "token_embeddings" in given:
            beyond = self.sentence_encoder.embed_tokens(src_tokens[:, length:])
            given["token_embeddings"] = torch.cat([given["token_embeddings"], beyond], dim=1)
        masked = None if masked is None else F.pad(masked, (0, missing))
        features, extra = self._features(src_tokens, return_all_hiddens, given, masked)
        states = extra["inner_states"]
        cut = None if states is None else [state[:length] for state in states]
        return features[:, :length], {"inner_states": cut}

    def _draw_mask(self, src_tokens: Tensor) -> Tensor | None:
        """Self-masking: (B, T), each True with the same probability, special symbols and padding too.

        From torch's own random stream, first thing in a pass, as in the original.
        """
        if not self.self_masking or torch.compiler.is_exporting():
            return None
        return torch.rand(src_tokens.shape, device=src_tokens.device) < self.self_masking

    def output_layer(self, features: Tensor, masked_tokens: Tensor | None = None, **targets: Any) -> Tensor:
        return self.lm_head(features, masked_tokens, **targets)

    def _projects_masked_only(self) -> bool:
        """Whether the way to logits is known to read no features but those of ``masked_tokens``."""
        return supports(self, "takes_targets", "output_layer") and supports(self.lm_head, "takes_targets", "forward")

    def max_positions(self) -> int:
        return self.args.max_positions

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> dict[str, Any]:
        check_vocabulary(state_dict, f"{name}.sentence_encoder.embed_tokens.weight".lstrip("."), self.dictionary)
        positions = getattr(self.sentence_encoder, "embed_positions", None)
        if isinstance(positions, nn.Embedding):
            key = f"{name}.sentence_encoder.embed_positions.weight".lstrip(".")
            usual = self.padding_idx + 1
            offset = getattr(positions, "offset", usual)
            extend_positions(state_dict, key, positions, offset, self.config.extend_positions)
            check_positions(state_dict, key, positions, offset, usual)
        upgrade_version(state_dict, f"{name}.sentence_encoder" if name else "sentence_encoder", self.sentence_encoder)
        return state_dict


def _given(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}
