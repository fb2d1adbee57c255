"""The original's attention, encoder layer and encoder of 2018 to 2020, with their signatures, over the parts of today.

Converters and plugins import `MultiheadAttention`, `TransformerSentenceEncoderLayer` and `TransformerSentenceEncoder`,
derive from them, and read parameters by attribute. Hidden states are (T, B, C), padding masks (B, T) with True = padding.

Legend: B batch, T tokens, S keys, C channels, H heads, D head width, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.compat.modules import FairseqDropout, LayerDropModuleList, quant_noise
from fairseq.compat.positions import PositionalEmbedding
from fairseq.errors import ConfigError, OutOfScopeError
from fairseq.modules.feed_forward import Linear, get_activation_fn
from fairseq.modules.initialization import init_bert_params, normal_
from fairseq.refusals import HERE


class MultiheadAttention(nn.Module):
    """Attention of ``query`` (T, B, C) over ``key`` and ``value`` (S, B, C), with the weights on request.

    Plain enough for ``torch.jit.script``. Parameters, their order and first values are those of the attention of today.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kdim: int | None = None,
        vdim: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        self_attention: bool = False,
        encoder_decoder_attention: bool = False,
        dictionary: Any = None,
        q_noise: float = 0.0,
        qn_block_size: int = 8,
        xformers_att_config: str | None = None,
        xformers_blocksparse_layout: Tensor | None = None,
        xformers_blocksparse_blocksize: int = 16,
    ) -> None:
        super().__init__()
        _refuse(add_bias_kv=add_bias_kv, add_zero_attn=add_zero_attn, xformers_att_config=xformers_att_config)
        quant_noise(self, q_noise, qn_block_size)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.qkv_same_dim = self.kdim == self.vdim == embed_dim
        if num_heads < 1 or embed_dim % num_heads:
            raise ConfigError(f"embed_dim must be a multiple of num_heads, but {embed_dim} is not one of {num_heads}")
        if self_attention and not self.qkv_same_dim:
            raise ConfigError("self-attention requires query, key and value to be of the same size")
        self.head_dim = embed_dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.self_attention = self_attention
        self.encoder_decoder_attention = encoder_decoder_attention
        self.dropout_module = FairseqDropout(dropout, module_name=type(self).__name__)
        self.k_proj = nn.Linear(self.kdim, embed_dim, bias=bias)
        self.v_proj = nn.Linear(self.vdim, embed_dim, bias=bias)
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.onnx_trace = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for projection in (self.k_proj, self.v_proj, self.q_proj):
            nn.init.xavier_uniform_(projection.weight, gain=2**-0.5 if self.qkv_same_dim else 1.0)
        nn.init.xavier_uniform_(self.out_proj.weight)
        if self.out_proj.bias is not None:
            nn.init.zeros_(self.out_proj.bias)

    @torch.jit.unused
    def draw_weights(self) -> None:
        """For `init_bert_params`: query, key and value once more, as the original does."""
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            normal_(projection.weight)

    def prepare_for_onnx_export_(self) -> None:
        self.onnx_trace = True

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        incremental_state: dict[str, dict[str, Tensor | None]] | None = None,
        need_weights: bool = True,
        static_kv: bool = False,
        attn_mask: Tensor | None = None,
        before_softmax: bool = False,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(T, B, C), and the weights: (B, T, S) on average over the heads, or (H, B, T, S) with ``need_head_weights``.

        ``attn_mask`` (T, S) or (B H, T, S) is added to the scores; ``before_softmax`` gives these and the values, (B H, T, S)
        and (B H, S, D).
        """
        if incremental_state is not None:
            raise NotImplementedError(
                "attention over what was decoded before is out of scope: leave incremental_state out"
            )
        keys = query if key is None or self.self_attention else key
        values = keys if value is None or self.self_attention else value
        length, batch = query.size(0), query.size(1)
        q = self._heads(self.q_proj(query) * self.scaling)
        k, v = self._heads(self.k_proj(keys)), self._heads(self.v_proj(values))
        scores = torch.bmm(q, k.transpose(1, 2))  # (B H, T, S)
        if attn_mask is not None:
            scores = scores + attn_mask.to(scores)
        if key_padding_mask is not None and key_padding_mask.dim() > 0:
            hidden = key_padding_mask.to(torch.bool).unsqueeze(1).unsqueeze(2)
            by_head = scores.view(batch, self.num_heads, length, -1)
            scores = by_head.masked_fill(hidden, float("-inf")).view(batch * self.num_heads, length, -1)
        if before_softmax:
            return scores, v
        weights = F.softmax(scores, dim=-1, dtype=torch.float32)
        mixed = torch.bmm(self.dropout_module(weights.type_as(scores)), v)  # (B H, T, D)
        mixed = mixed.transpose(0, 1).reshape(length, batch, self.embed_dim)
        shown: Tensor | None = None
        if need_weights or need_head_weights:
            shown = weights.view(batch, self.num_heads, length, -1).transpose(0, 1)
            if not need_head_weights:
                shown = shown.mean(dim=0)
        return self.out_proj(mixed), shown

    def _heads(self, x: Tensor) -> Tensor:
        """(S, B, C) -> (B H, S, D)"""
        return x.reshape(x.size(0), x.size(1) * self.num_heads, self.head_dim).transpose(0, 1)


class TransformerSentenceEncoderLayer(nn.Module):
    """Attention and feed-forward, each with a residual connection and a norm after it."""

    def __init__(
        self,
        embedding_dim: int = 768,
        ffn_embedding_dim: int = 3072,
        num_attention_heads: int = 8,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        activation_dropout: float = 0.1,
        activation_fn: str = "relu",
        export: bool = False,
        q_noise: float = 0.0,
        qn_block_size: int = 8,
        init_fn: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        if init_fn is not None:
            init_fn()
        self.embedding_dim = embedding_dim
        self.num_attention_heads = num_attention_heads
        self.attention_dropout = attention_dropout
        self.q_noise = q_noise
        self.qn_block_size = qn_block_size
        self.dropout_module = FairseqDropout(dropout, module_name=type(self).__name__)
        self.activation_dropout_module = FairseqDropout(activation_dropout, module_name=type(self).__name__)
        self.activation_fn = get_activation_fn(activation_fn)
        self.self_attn = self.build_self_attention(
            embedding_dim,
            num_attention_heads,
            dropout=attention_dropout,
            self_attention=True,
            q_noise=q_noise,
            qn_block_size=qn_block_size,
        )
        self.self_attn_layer_norm = nn.LayerNorm(embedding_dim)
        self.fc1 = self.build_fc1(embedding_dim, ffn_embedding_dim, q_noise=q_noise, qn_block_size=qn_block_size)
        self.fc2 = self.build_fc2(ffn_embedding_dim, embedding_dim, q_noise=q_noise, qn_block_size=qn_block_size)
        self.final_layer_norm = nn.LayerNorm(embedding_dim)

    def build_fc1(self, input_dim: int, output_dim: int, q_noise: float, qn_block_size: int) -> nn.Module:
        return quant_noise(Linear(input_dim, output_dim), q_noise, qn_block_size)

    def build_fc2(self, input_dim: int, output_dim: int, q_noise: float, qn_block_size: int) -> nn.Module:
        return quant_noise(Linear(input_dim, output_dim), q_noise, qn_block_size)

    def build_self_attention(
        self,
        embed_dim: int,
        num_attention_heads: int,
        dropout: float,
        self_attention: bool,
        q_noise: float,
        qn_block_size: int,
    ) -> nn.Module:
        return MultiheadAttention(
            embed_dim,
            num_attention_heads,
            dropout=dropout,
            self_attention=True,
            q_noise=q_noise,
            qn_block_size=qn_block_size,
        )

    def forward(
        self, x: Tensor, self_attn_mask: Tensor | None = None, self_attn_padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(T, B, C), and the attention weights, which are None."""
        mixed, weights = self.self_attn(
            query=x,
            key=x,
            value=x,
            key_padding_mask=self_attn_padding_mask,
            need_weights=False,
            attn_mask=self_attn_mask,
        )
        x = self.self_attn_layer_norm(x + self.dropout_module(mixed))
        inner = self.activation_dropout_module(self.activation_fn(self.fc1(x)))
        return self.final_layer_norm(x + self.dropout_module(self.fc2(inner))), weights


class TransformerSentenceEncoder(nn.Module):
    """Embeddings, positions, segments and L layers: ids (B, T) to L + 1 hidden states (T, B, C) and the first token's (B, C)."""

    def __init__(
        self,
        padding_idx: int,
        vocab_size: int,
        num_encoder_layers: int = 6,
        embedding_dim: int = 768,
        ffn_embedding_dim: int = 3072,
        num_attention_heads: int = 8,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        activation_dropout: float = 0.1,
        layerdrop: float = 0.0,
        max_seq_len: int = 256,
        num_segments: int = 2,
        use_position_embeddings: bool = True,
        offset_positions_by_padding: bool = True,
        encoder_normalize_before: bool = False,
        apply_bert_init: bool = False,
        activation_fn: str = "relu",
        learned_pos_embedding: bool = True,
        embed_scale: float | None = None,
        freeze_embeddings: bool = False,
        n_trans_layers_to_freeze: int = 0,
        export: bool = False,
        traceable: bool = False,
        q_noise: float = 0.0,
        qn_block_size: int = 8,
    ) -> None:
        super().__init__()
        self.padding_idx = padding_idx
        self.vocab_size = vocab_size
        self.dropout_module = FairseqDropout(dropout, module_name=type(self).__name__)
        self.layerdrop = layerdrop
        self.max_seq_len = max_seq_len
        self.embedding_dim = embedding_dim
        self.num_segments = num_segments
        self.use_position_embeddings = use_position_embeddings
        self.apply_bert_init = apply_bert_init
        self.learned_pos_embedding = learned_pos_embedding
        self.traceable = traceable
        self.embed_tokens: Any = self.build_embedding(vocab_size, embedding_dim, padding_idx)
        self.embed_scale = embed_scale
        self.quant_noise = None
        quant_noise(self, q_noise, qn_block_size)
        self.segment_embeddings = nn.Embedding(num_segments, embedding_dim) if num_segments > 0 else None
        self.embed_positions: Any = None
        self.counts_all_tokens = not offset_positions_by_padding
        if use_position_embeddings:
            skipped = padding_idx if offset_positions_by_padding else None
            self.embed_positions = PositionalEmbedding(max_seq_len, embedding_dim, skipped, learned_pos_embedding)
        self.emb_layer_norm = nn.LayerNorm(embedding_dim) if encoder_normalize_before else None
        layers = [
            self.build_transformer_sentence_encoder_layer(
                embedding_dim=embedding_dim,
                ffn_embedding_dim=ffn_embedding_dim,
                num_attention_heads=num_attention_heads,
                dropout=dropout,
                attention_dropout=attention_dropout,
                activation_dropout=activation_dropout,
                activation_fn=activation_fn,
                export=export,
                q_noise=q_noise,
                qn_block_size=qn_block_size,
            )
            for _ in range(num_encoder_layers)
        ]
        self.layers = LayerDropModuleList(layerdrop, layers) if layerdrop > 0 else nn.ModuleList(layers)
        if apply_bert_init:
            self.apply(init_bert_params)
        self.register_load_state_dict_pre_hook(self._keep_name_of_norm)
        frozen = layers[:n_trans_layers_to_freeze]
        if freeze_embeddings:
            embeddings = (self.embed_tokens, self.segment_embeddings, self.embed_positions, self.emb_layer_norm)
            frozen += [part for part in embeddings if part is not None]
        for part in frozen:
            part.requires_grad_(False)

    def _keep_name_of_norm(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        """Models call the norm after the embeddings ``layernorm_embedding`` when they load; here it keeps its old name.

        A hook, because plugins override ``upgrade_state_dict_named``.
        """
        for key in [key for key in state_dict if key.startswith(f"{prefix}layernorm_embedding.")]:
            state_dict[key.replace("layernorm_embedding.", "emb_layer_norm.")] = state_dict.pop(key)

    def build_embedding(self, vocab_size: int, embedding_dim: int, padding_idx: int) -> nn.Module:
        return nn.Embedding(vocab_size, embedding_dim, padding_idx)

    def build_transformer_sentence_encoder_layer(self, **settings: Any) -> nn.Module:
        return TransformerSentenceEncoderLayer(**settings)

    def forward(
        self,
        tokens: Tensor,
        segment_labels: Tensor | None = None,
        last_state_only: bool = False,
        positions: Tensor | None = None,
        token_embeddings: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> tuple[Any, Tensor]:
        """The hidden states (the last one alone with ``last_state_only``), a list or, ``traceable``, one tensor."""
        padding = tokens.eq(self.padding_idx)
        x = self.embed_tokens(tokens) if token_embeddings is None else token_embeddings
        if self.embed_scale is not None:
            x = x * self.embed_scale
        if self.embed_positions is not None:
            if positions is None and self.counts_all_tokens:
                positions = torch.arange(tokens.size(1), device=tokens.device).expand(tokens.shape)
            x = x + self.embed_positions(tokens, positions=positions)
        if self.segment_embeddings is not None and segment_labels is not None:
            x = x + self.segment_embeddings(segment_labels)
        if self.emb_layer_norm is not None:
            x = self.emb_layer_norm(x)
        x = self.dropout_module(x)
        mask = padding if padding.any() or self.traceable else None
        if mask is not None:
            x = x * (~mask).unsqueeze(-1).type_as(x)
        x = x.transpose(0, 1)
        states = [] if last_state_only else [x]
        for layer in self.layers:
            x, _ = layer(x, self_attn_padding_mask=mask, self_attn_mask=attn_mask)
            if not last_state_only:
                states.append(x)
        states = [x] if last_state_only else states
        return (torch.stack(states) if self.traceable else states), x[0]


def _refuse(**settings: Any) -> None:
    for name, value in settings.items():
        if value:
            raise OutOfScopeError(f"MultiheadAttention with {name} is out of scope: {HERE}")
