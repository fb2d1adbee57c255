"""Folders of UltraFastBERT (arXiv 2311.10770) and of the crammed BERT that it is built on (arXiv 2212.14034).

The weights are those of the presets ``ultrafastbert_*`` and ``crammed_bert*`` under other names, but for three things:
query, key and value are one matrix with the rows of each head together; the vectors that nodes write are columns, not
rows; and the matrix of the token embeddings is stored once more as that of the head.

Legend: C channels, H heads, D head width.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq.errors import CheckpointError
from fairseq.interop import vocabulary
from fairseq.interop.portable import (
    CONFIG,
    TOKENIZER,
    PortableModel,
    files_beside,
    heads_in,
    load_json,
    make_state,
    read_weights,
    save_json,
    write_weights,
)
from fairseq.interop.ultrafastbert_config import config_of, settings_of, stored_configuration
from fairseq.registry import FORMATS

logger = logging.getLogger(__name__)

EMBEDDING, DECODER = "encoder.embedding.word_embedding.weight", "decoder.weight"
OUR_EMBEDDING, OUR_DECODER = "encoder.sentence_encoder.embed_tokens.weight", "encoder.lm_head.weight"
HEAD = "sentence_classification_head"
OUTSIDE = {  # their name -> ours
    EMBEDDING: OUR_EMBEDDING,
    "encoder.embedding.pos_embedding.scale_factor": "encoder.sentence_encoder.embed_positions.scale",
    "encoder.embedding.norm.weight": "encoder.sentence_encoder.layernorm_embedding.weight",
    "encoder.embedding.norm.bias": "encoder.sentence_encoder.layernorm_embedding.bias",
    "encoder.final_norm.weight": "encoder.sentence_encoder.layer_norm.weight",
    "encoder.final_norm.bias": "encoder.sentence_encoder.layer_norm.bias",
    DECODER: OUR_DECODER,
    "decoder.bias": "encoder.lm_head.bias",
    "pooler.dense.weight": f"classification_heads.{HEAD}.dense.weight",
    "pooler.dense.bias": f"classification_heads.{HEAD}.dense.bias",
    "head.weight": f"classification_heads.{HEAD}.out_proj.weight",
    "head.bias": f"classification_heads.{HEAD}.out_proj.bias",
}
QKV, FACTOR = "attn.self_attention.query_key_value.weight", "attn.self_attention.norm_factor"
COLUMNS = "ffn.linear_out.weight"
INSIDE = {  # within a layer
    "norm1.weight": "self_attn_layer_norm.weight",
    "norm1.bias": "self_attn_layer_norm.bias",
    "norm2.weight": "final_layer_norm.weight",
    "norm2.bias": "final_layer_norm.bias",
    "attn.dense.weight": "self_attn.out_proj.weight",
    "ffn.dense_in.weight": "fc1.weight",
    "ffn.dense_out.weight": "fc2.weight",
    "ffn.linear_in.weight": "channel_mixer.weight_in",
    "ffn.linear_in.bias": "channel_mixer.bias_in",
    COLUMNS: "channel_mixer.weight_out",
}
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)")
_OUR_LAYER = re.compile(r"encoder\.sentence_encoder\.layers\.(\d+)\.(.+)")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


@FORMATS.register("ultrafastbert")
class UltraFastBERT:
    """``config.json``, ``model.safetensors`` or ``pytorch_model.bin``, and ``tokenizer.json`` if there is one."""

    @staticmethod
    def read(folder: Path, special: Mapping[str, int]) -> PortableModel:
        config = load_json(folder / CONFIG)
        settings = settings_of(config)
        theirs = read_weights(folder)
        embeddings = _embeddings(theirs)
        ids = vocabulary.special_ids(folder, special, len(embeddings))
        order = vocabulary.our_order(ids, len(embeddings))
        scale = _scale(theirs, settings["encoder_embed_dim"] // settings["encoder_attention_heads"])
        if scale is not None:
            settings["self_attention_scale"] = scale
        weights = our_weights(theirs, order, settings["encoder_attention_heads"])
        symbols, files = vocabulary.symbols(order), files_beside(folder)
        bpe = {"_name": "hf_tokenizer", "hf_tokenizer_file": TOKENIZER} if TOKENIZER in files else None
        state = make_state("crammed_bert", settings, weights, symbols, settings["max_positions"], bpe)
        return PortableModel(state, symbols, files, {"special": ids, "rows": order, "config": config})

    @staticmethod
    def write(model: PortableModel, folder: Path) -> None:
        configuration = stored_configuration(model.state)
        weights = model.state["model"]
        order = model.origin.get("rows") or range(len(weights[OUR_EMBEDDING]))
        if not model.origin:
            logger.warning(
                "rows stay in the order of dict.txt (pad is 1, <mask> the last one): there is no conversion.json beside the "
                "checkpoint, and --special does not say which ids its tokenizer has"
            )
        factor = configuration.variants["token_mixer"].options["scale"]
        width = configuration.encoder_embed_dim // configuration.encoder_attention_heads
        theirs = their_weights(
            weights, order, configuration.encoder_attention_heads, width**-0.5 if factor is None else factor
        )
        classes = heads_in(weights).get(HEAD)
        config = config_of(configuration, len(order), classes, model.origin.get("config"))
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(theirs, folder)
        save_json(config, folder / CONFIG)


def _embeddings(weights: dict[str, Tensor]) -> Tensor:
    """The one matrix of token embeddings and head, which is put under both names. Raises CheckpointError."""
    found = [weights[key] for key in (EMBEDDING, DECODER) if key in weights]
    if not found:
        raise CheckpointError(f"the weights lack {EMBEDDING}: they are not those of an UltraFastBERT")
    if len(found) == 2 and not torch.equal(*found):
        raise CheckpointError(f"{EMBEDDING} and {DECODER} differ, but this model has one matrix for both")
    weights[EMBEDDING] = weights[DECODER] = found[0]
    return found[0]


def _scale(weights: Mapping[str, Tensor], width: int) -> float | None:
    """The factor on scores that the layers store; None if it is exactly one over the root of the heads' ``width``."""
    factors = {float(value) for key, value in weights.items() if key.endswith(FACTOR)}
    if len(factors) > 1:
        raise CheckpointError(f"the layers scale their attention scores differently: {sorted(factors)}")
    factor = factors.pop() if factors else width**-0.5
    if not math.isclose(factor, width**-0.5, rel_tol=1e-6):
        logger.warning("attention scores are scaled by %s, not by 1/sqrt(%d)", factor, width)
    return None if factor == width**-0.5 else factor


def our_weights(theirs: Mapping[str, Tensor], order: list[int], heads: int) -> dict[str, Tensor]:
    """``theirs`` by our names, rows of the vocabulary in our ``order``. Raises CheckpointError for unknown names."""
    weights = {"encoder.sentence_encoder.version": torch.tensor([3.0])}
    unknown = []
    for key, value in theirs.items():
        layer = _LAYER.fullmatch(key)
        within = layer.group(2) if layer else ""
        prefix = f"encoder.sentence_encoder.layers.{layer.group(1)}." if layer else ""
        if within == QKV:
            if len(value) % (3 * heads):
                raise CheckpointError(f"{key} has {len(value)} rows, which {heads} heads cannot share")
            parts = value.unflatten(0, (heads, 3, -1)).unbind(1)  # (H 3 D, C) -> 3 of (H, D, C)
            for name, part in zip(_PROJECTIONS, parts, strict=True):
                weights[f"{prefix}self_attn.{name}.weight"] = part.flatten(0, 1)
        elif within in INSIDE:
            weights[prefix + INSIDE[within]] = value.t().contiguous() if within == COLUMNS else value
        elif key in (EMBEDDING, DECODER, "decoder.bias"):
            weights[OUTSIDE[key]] = vocabulary.to_ours(value, order)
        elif key in OUTSIDE:
            weights[OUTSIDE[key]] = value
        elif within != FACTOR:
            unknown.append(key)
    if unknown:
        raise CheckpointError(f"no such weights are known of an UltraFastBERT: {', '.join(sorted(unknown)[:3])}, ...")
    weights[OUR_DECODER] = weights[OUR_EMBEDDING]
    return weights


def their_weights(ours: Mapping[str, Tensor], order: Any, heads: int, factor: float) -> dict[str, Tensor]:
    """The inverse of `our_weights`, with the ``factor`` on scores of each layer."""
    outside, inside = ({our: their for their, our in table.items()} for table in (OUTSIDE, INSIDE))
    weights: dict[str, Tensor] = {}
    for key, value in ours.items():
        layer = _OUR_LAYER.fullmatch(key)
        within = layer.group(2) if layer else ""
        prefix = f"encoder.layers.{layer.group(1)}." if layer else ""
        if within == "self_attn.q_proj.weight":
            parts = [ours[key.replace("q_proj", name)].unflatten(0, (heads, -1)) for name in _PROJECTIONS]
            weights[prefix + QKV] = torch.stack(parts, dim=1).flatten(0, 2)
            weights[prefix + FACTOR] = torch.tensor(factor, dtype=torch.float32)
        elif within in inside:
            weights[prefix + inside[within]] = value.t() if inside[within] == COLUMNS else value
        elif key in outside:
            rows = key in (OUR_EMBEDDING, OUR_DECODER, "encoder.lm_head.bias")
            weights[outside[key]] = vocabulary.to_theirs(value, order) if rows else value
        elif not key.endswith((".version", ".k_proj.weight", ".v_proj.weight")):
            logger.warning("an UltraFastBERT has no place for %s, which is left out", key)
    return weights
