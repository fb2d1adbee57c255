"""What ``fairseq.portable`` has to know of a model: the configuration of a checkpoint as plain JSON, and the names of its weights.

Names are those of Transformers' configurations where it has one, so that tools find sizes where they look for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq.dataclass.build import as_plain
from fairseq.errors import CheckpointError
from fairseq.interop.hf_names import complete_lm_head
from fairseq.interop.portable import (
    TOKENIZER,
    PortableModel,
    config_in,
    files_beside,
    make_state,
    read_configuration,
)
from fairseq.models.roberta.config import RobertaConfig
from fairseq.models.roberta.factory import configuration, embedding_dim
from fairseq.modules.conv_grammar import read_options

ENCODER, LM_HEAD, HEADS = "encoder.sentence_encoder.", "encoder.lm_head.", "classification_heads."
VARIANTS = {  # what the portable encoder has; a variant of a plugin is not among it
    "token_mixer": ("self_attention", "bigs", "conv_attention"),
    "channel_mixer": ("feed_forward", "fff", "none"),
    "positions": ("none", "learned", "sinusoidal", "scaled_sinusoidal"),
    "attention_bias": ("none", "alibi", "alibi_asymmetrical"),
    "lm_head": ("roberta", "clap", "product"),
}
PAD = 1  # the row of padding in every dictionary of ours
NOT_STORED = ("version", "embed_positions._float_tensor")


def portable_settings(state: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that ``fairseq.portable.encoder`` reads. Raises CheckpointError for what it does not have."""
    config = read_configuration(
        state, "a model that others can load", {"spectral_norm_classification_head": (False,)}, VARIANTS
    )
    weights = state["model"]
    table = weights[f"{ENCODER}embed_tokens.weight"]
    options = {slot: dict(variant.options) for slot, variant in config.variants.items()}
    head = weights.get(f"{LM_HEAD}weight")
    dropout = config.dropout
    return {
        "vocab_size": len(table),
        "hidden_size": config.encoder_embed_dim,
        "embedding_size": embedding_dim(config),
        "num_hidden_layers": config.encoder_layers,
        "num_attention_heads": config.encoder_attention_heads,
        "intermediate_size": config.encoder_ffn_embed_dim,
        "max_position_embeddings": _longest(config, weights, options["positions"]),
        "type_vocab_size": config.type_vocab_size,
        "hidden_act": config.activation_fn,
        "layer_norm_eps": config.layer_norm_eps,
        "linear_bias": config.linear_bias,
        "pre_norm": config.encoder_normalize_before,
        "final_norm": config.final_norm,
        "embedding_norm": config.layernorm_embedding,
        "embedding_scale": 1.0 if config.no_scale_embedding else embedding_dim(config) ** 0.5,
        "normalize_embeddings": config.variants["lm_head"].name == "clap" and config.l2norm_embedding,
        "zero_masking": config.zero_masking,
        "zero_padding": config.zero_padding and options["token_mixer"].get("padding", "masked") == "masked",
        "attention_bias": config.variants["attention_bias"].name,
        "token_mixer": _token_mixer(config, options["token_mixer"]),
        "channel_mixer": {"name": config.variants["channel_mixer"].name, **options["channel_mixer"]},
        "positions": {"name": config.variants["positions"].name, **_offsets(config, options["positions"])},
        "lm_head": {"name": config.variants["lm_head"].name, **options["lm_head"]},
        "tied": not config.untie_weights_roberta and (head is None or table.equal(head)),
        "hidden_dropout": dropout,
        "residual_dropout": dropout if config.residual_dropout is None else config.residual_dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout or config.relu_dropout,
        "pad_token_id": PAD,
    }


def _longest(config: RobertaConfig, weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> int:
    """The longest input: that of the table of positions, else the stored limit."""
    table = weights.get(f"{ENCODER}embed_positions.weight")
    if table is None:
        return config.max_positions or 0
    return len(table) - (PAD + 1 if options.get("offset") is None else options["offset"])


def _offsets(config: RobertaConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    if config.variants["positions"].name == "scaled_sinusoidal":
        return {"offset": 0, "by_column": True}
    return {"offset": options.get("offset"), "by_column": bool(options.get("by_column"))}


def _token_mixer(config: RobertaConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    name = config.variants["token_mixer"].name
    if name == "bigs":
        return {"name": name, **{key: options[key] for key in ("num_ssm", "activation", "padding")}}
    if name == "self_attention":
        return {"name": name, "scale": options["scale"]}
    parts = read_options(**options)
    width = parts.head_dim or config.encoder_embed_dim // config.encoder_attention_heads
    return {
        "name": name,
        "kernel": asdict(parts.kernel),
        "query_key": asdict(parts.query_key),
        "value": asdict(parts.value),
        "head_dim": width,
    }


def portable_weights(state: Mapping[str, Any], tied: bool, head: str | None = None) -> dict[str, Tensor]:
    """The weights under the names of ``fairseq.portable``; those of the classification head ``head`` as ``classifier``."""
    found: dict[str, Tensor] = {}
    for key, value in state["model"].items():
        if key.startswith(ENCODER):
            if key.removeprefix(ENCODER) not in NOT_STORED:
                found["encoder." + key.removeprefix(ENCODER)] = value
        elif key.startswith(LM_HEAD):
            if not (tied and key == f"{LM_HEAD}weight"):
                found["lm_head." + key.removeprefix(LM_HEAD)] = value
        elif key.startswith(HEADS):
            if head is not None and key.startswith(f"{HEADS}{head}."):
                found["classifier." + key.removeprefix(f"{HEADS}{head}.")] = value
        else:
            raise CheckpointError(f"weights of another kind cannot be written for other programs: {key}")
    return found


def from_portable(theirs: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """The inverse of `portable_weights`."""
    head = (settings.get("head") or {}).get("name") or _new_head(theirs, settings)
    prefixes = {"encoder.": ENCODER, "lm_head.": LM_HEAD, "classifier.": f"{HEADS}{head}."}
    found = {f"{ENCODER}version": torch.tensor([3.0])}
    for key, value in theirs.items():
        start = next((prefix for prefix in prefixes if key.startswith(prefix)), None)
        if start is None:
            raise CheckpointError(f"no such weight is known of a fairseq model: {key}")
        found[prefixes[start] + key.removeprefix(start)] = value
    _complete(found, settings)
    if settings["positions"]["name"] == "sinusoidal":
        found[f"{ENCODER}embed_positions._float_tensor"] = torch.zeros(1)
    return found


def _new_head(theirs: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    """The name of a head that Transformers has added."""
    if "classifier.dense.weight" in theirs:
        return "sentence_classification_head"
    spans = any("QuestionAnswering" in str(name) for name in settings.get("architectures") or ())
    return "question_answering_head" if spans else "token_classification_head"


def _complete(weights: dict[str, Tensor], settings: Mapping[str, Any]) -> None:
    """Tie the masked-LM head; one that Transformers has left out, as its other classes do, is made anew."""
    kind = settings["lm_head"]["name"]
    if kind == "roberta":
        complete_lm_head(weights, settings["tied"], "model")
    elif settings["tied"]:
        weights[f"{LM_HEAD}weight"] = weights[f"{ENCODER}embed_tokens.weight"]
    if kind == "clap" and f"{LM_HEAD}beta" not in weights:
        weights[f"{LM_HEAD}beta"] = torch.tensor(float(settings["lm_head"]["initial_beta"]))


def head_settings(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What ``fairseq.portable.encoder.TaskHead`` has to know of the head ``name``."""
    cfg = config_in(state)
    config = configuration(cfg.model)
    weights = state["model"]
    classes = len(weights[f"{HEADS}{name}.out_proj.weight"])
    dense = weights.get(f"{HEADS}{name}.dense.weight")
    shared = {"name": name, "classes": classes, "dropout": config.pooler_dropout}
    if dense is None:
        task = getattr(cfg.task, "_name", None)
        spans = classes == 2 and (task == "question_answering" or name == "question_answering_head")
        return {**shared, "kind": "span", "dropout": 0.0} if spans else {**shared, "kind": "token"}
    return {
        **shared,
        "kind": "classification",
        "inner_dim": len(dense),
        "pooling": config.pooling,
        "activation": config.pooler_activation_fn,
        "input_dropout": config.pooler_input_dropout,
    }


def stored_settings(state: Mapping[str, Any]) -> dict[str, Any]:
    """What the way back needs: the settings of the model as a checkpoint has them."""
    cfg = config_in(state)
    model = {key: value for key, value in as_plain(cfg.model, resolve=True).items() if value is not None}
    return {
        "model": model,
        "tokens": getattr(cfg.task, "tokens_per_sample", None) or model.get("max_positions") or 512,
        "omit_mask": bool(getattr(cfg.task, "omit_mask", False)),
    }


def state_of(settings: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path) -> PortableModel:
    """The model with the ``settings`` that `portable_settings` and `stored_settings` made."""
    stored = dict(settings["fairseq"]["model"])
    symbols = [str(row) for row in range(4, settings["vocab_size"])]
    files = files_beside(folder)
    omit_mask = settings["fairseq"]["omit_mask"]
    symbols = symbols if omit_mask else symbols[:-1]
    bpe = {"_name": "hf_tokenizer", "hf_tokenizer_file": TOKENIZER} if TOKENIZER in files else None
    state = make_state(stored.pop("_name"), stored, weights, symbols, settings["fairseq"]["tokens"], bpe, omit_mask)
    return PortableModel(state, symbols, files, folder=folder)
