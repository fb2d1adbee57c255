"""Every encoder of fairseq in plain PyTorch: what ``fairseq-convert --to hf-auto`` puts beside the weights, and what is exported.

It imports nothing but torch, has no custom operator and no branch that depends on data, so that it can be copied beside
weights, traced and exported with a dynamic batch and length. It is made for reading and for inference; the encoder that
trains fast is ``fairseq.modules.encoder``, whose names of parameters are kept here. A test holds one to the other.

``config`` is any object with the attributes of ``fairseq.interop.hf_settings``.

Legend: B batch, T tokens, C channels, E embedding width, V vocabulary, K classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.portable.mixers import FastFeedForward, activate, score_bias, token_mixer


class Layer(nn.Module):
    """x + mix(x) for the token mixer and the channel mixer, normalized after each sum or before each mixer."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        dim, eps = config.hidden_size, config.layer_norm_eps
        self.channels, self.pre_norm, self.activation = config.channel_mixer["name"], config.pre_norm, config.hidden_act
        self.dropout = config.residual_dropout
        self.inner_dropout = config.activation_dropout
        self.self_attn = token_mixer(config)
        self.self_attn_layer_norm = nn.LayerNorm(dim, eps=eps)
        if self.channels == "fff":
            self.channel_mixer = FastFeedForward(config)
        elif self.channels == "feed_forward":
            self.fc1 = nn.Linear(dim, config.intermediate_size, bias=config.linear_bias)
            self.fc2 = nn.Linear(config.intermediate_size, dim, bias=config.linear_bias)
        self.final_layer_norm = None if self.channels == "none" else nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor, padding: Tensor, bias: Tensor) -> Tensor:
        x = self._add(x, lambda y: self.self_attn(y, padding, bias), self.self_attn_layer_norm)
        return x if self.final_layer_norm is None else self._add(x, self._mix_channels, self.final_layer_norm)

    def _add(self, x: Tensor, mix: Any, norm: nn.Module) -> Tensor:
        mixed = F.dropout(mix(norm(x) if self.pre_norm else x), self.dropout, self.training)
        return x + mixed if self.pre_norm else norm(x + mixed)

    def _mix_channels(self, x: Tensor) -> Tensor:
        if self.channels == "fff":
            return self.channel_mixer(x)
        inner = F.dropout(activate(self.fc1(x), self.activation), self.inner_dropout, self.training)
        return self.fc2(inner)


# ------------------------------------------------------------------------------------------------------------ encoder


class Positions(nn.Module):
    """Vectors of positions. ``padding_idx`` + 1 is the first row unless ``offset`` says another; ``by_column`` counts padding."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        options, usual = config.positions, config.pad_token_id + 1
        self.kind, self.by_column, self.dim = options["name"], options["by_column"], config.embedding_size
        self.offset = usual if options["offset"] is None else options["offset"]
        self.padding_row = config.pad_token_id if config.pad_token_id == self.offset - 1 else None
        if self.kind == "learned":
            rows = config.max_position_embeddings + self.offset
            self.weight = nn.Parameter(torch.zeros(rows, self.dim))
        elif self.kind == "scaled_sinusoidal":
            self.scale = nn.Parameter(torch.ones(1))

    def forward(self, padding: Tensor, position_ids: Tensor | None, dtype: torch.dtype) -> Tensor:
        """(B, T, E) for ``padding`` (B, T), True = padding."""
        ids = self._ids(padding) if position_ids is None else position_ids
        if self.kind == "learned":
            return F.embedding(ids, self.weight)
        half = self.dim // 2
        if self.kind == "scaled_sinusoidal":
            columns = torch.arange(0, self.dim, 2, dtype=torch.float, device=ids.device)
            angles = ids.float().unsqueeze(-1) * torch.exp(columns * (-math.log(10000.0) / self.dim))
            table = torch.stack([torch.sin(angles), torch.cos(angles)], dim=-1).flatten(-2)[..., : self.dim]
            return self.scale * table.to(dtype)
        columns = torch.arange(half, dtype=torch.float, device=ids.device)
        angles = ids.float().unsqueeze(-1) * torch.exp(columns * -(math.log(10000) / max(half - 1, 1)))
        table = F.pad(torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1), (0, self.dim - 2 * half))
        row = -1 if self.padding_row is None else self.padding_row
        return torch.where((ids == row).unsqueeze(-1), 0.0, table).to(dtype)

    def _ids(self, padding: Tensor) -> Tensor:
        if self.by_column:
            return (torch.arange(padding.size(1), device=padding.device) + self.offset).expand(padding.shape)
        counted = torch.cumsum((~padding).long(), dim=1) + (self.offset - 1)
        return counted.masked_fill(padding, 0 if self.padding_row is None else self.padding_row)


class Encoder(nn.Module):
    """Token ids (B, T) to features (B, T, C)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        width, dim, eps = config.embedding_size, config.hidden_size, config.layer_norm_eps
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.embed_positions = None if config.positions["name"] == "none" else Positions(config)
        self.embed_token_types = nn.Embedding(config.type_vocab_size, width) if config.type_vocab_size else None
        self.layernorm_embedding = nn.LayerNorm(width, eps=eps) if config.embedding_norm else None
        self.embed_projection = nn.Linear(width, dim) if width != dim else None
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.layer_norm = nn.LayerNorm(dim, eps=eps) if config.pre_norm and config.final_norm else None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """The embeddings and the output of each layer; the last one is the result. ``attention_mask`` is 0 at padding."""
        padding = input_ids == self.config.pad_token_id if attention_mask is None else attention_mask == 0
        x = self.embed(input_ids, padding, token_type_ids, position_ids)
        bias = score_bias(self.config, padding, x.dtype)
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1], padding, bias))
        if self.layer_norm is not None:
            states[-1] = self.layer_norm(states[-1])
        return tuple(states)

    def embed(
        self, ids: Tensor, padding: Tensor, types: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        config = self.config
        x = self.embed_tokens(ids.clamp(max=config.vocab_size - 1))
        x = F.normalize(x, dim=-1) if config.normalize_embeddings else x
        if config.zero_masking:  # the mask is no symbol of the vocabulary, and a zero vector
            x = x * (ids < config.vocab_size).to(x.dtype).unsqueeze(-1)
        x = x * config.embedding_scale
        if self.embed_token_types is not None:
            x = x + self.embed_token_types(torch.zeros_like(ids) if types is None else types)
        if self.embed_positions is not None:
            x = x + self.embed_positions(padding, position_ids, x.dtype)
        x = x if self.layernorm_embedding is None else self.layernorm_embedding(x)
        x = F.dropout(x, config.hidden_dropout, self.training)
        x = x if self.embed_projection is None else self.embed_projection(x)
        return x * (~padding).to(x.dtype).unsqueeze(-1) if config.zero_padding else x


class LMHead(nn.Module):
    """Features (B, T, C) to logits (B, T, V), with the token embeddings (V, E), or weights of its own."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.options, self.activation = config.lm_head, config.hidden_act
        kind, width = self.options["name"], config.embedding_size
        if kind == "roberta":
            self.dense = nn.Linear(config.hidden_size, width)
            self.layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        if not config.tied:
            self.weight = nn.Parameter(torch.zeros(config.vocab_size, width))
        if kind == "clap":
            self.beta = nn.Parameter(torch.ones(()))
        has_bias = kind == "roberta" or bool(self.options.get("bias"))
        self.bias = nn.Parameter(torch.zeros(config.vocab_size)) if has_bias else None

    def forward(self, x: Tensor, embeddings: Tensor) -> Tensor:
        weight = getattr(self, "weight", embeddings)
        if self.options["name"] == "clap":
            weight = F.normalize(weight, dim=-1) if self.options["normalize"] else weight
            return self.beta * F.linear(x, weight)
        if self.options["name"] == "roberta":
            x = self.layer_norm(activate(self.dense(x), self.activation))
        return F.linear(x, weight, self.bias)


class TaskHead(nn.Module):
    """A head on features: ``kind`` classification (B, K), token (B, T, K) or span (B, T, 2)."""

    def __init__(self, config: Any, head: dict[str, Any]) -> None:
        super().__init__()
        self.head, dim = head, config.hidden_size
        inner = head.get("inner_dim") or dim
        if head["kind"] == "classification":
            self.dense = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner if head["kind"] == "classification" else dim, head["classes"])

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        dropout = self.head.get("dropout", 0.0)
        if self.head["kind"] == "classification":
            x = pool(x, padding, self.head["pooling"])
            x = F.dropout(x, dropout, self.training) if self.head["input_dropout"] else x
            x = activate(self.dense(x), self.head["activation"])
        return self.out_proj(F.dropout(x, dropout, self.training))


def pool(x: Tensor, padding: Tensor, pooling: str) -> Tensor:
    """(B, T, C) to (B, C): the ``first`` token's, the ``mean`` of all, the ``masked_mean`` without padding."""
    if pooling == "first":
        return x[:, 0]
    if pooling == "mean":
        return x.mean(dim=1)
    kept = (~padding).unsqueeze(-1).to(x.dtype)
    return (x * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)
