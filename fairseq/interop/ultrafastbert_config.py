"""``config.json`` of UltraFastBERT and our settings, both ways."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

from fairseq.errors import CheckpointError
from fairseq.interop import portable
from fairseq.models.roberta.config import RobertaConfig

logger = logging.getLogger(__name__)

ACTIVATIONS = {"GELU": "gelu", "ReLU": "relu"}
POOLER_ACTIVATIONS = {**ACTIVATIONS, "Tanh": "tanh"}
POOLINGS = {"zero_index": "first", "avg": "mean"}

# What all models of this kind have; where a file says something else, it is of another kind.
FIXED: dict[str, Any] = {
    "attention.type": "self-attention",
    "attention.causal_attention": False,
    "attention.qkv_bias": False,
    "attention.rotary_embedding": False,
    "attention.sequence_op": "torch-softmax",
    "attention.skip_output_projection": False,
    "embedding.normalization": True,
    "embedding.pos_embedding": "scaled-sinusoidal",
    "final_norm": True,
    "norm": "LayerNorm",
    "skip_head_transform": True,
    "use_bias": False,
}
# The rest of a new file, as published models have it.
TEMPLATE: dict[str, Any] = {
    "model_type": "crammedBERT",
    "architectures": ["ScriptableLMForPreTraining"],
    "torch_dtype": "float32",
    "arch": {
        "architectures": ["ScriptableCrammedBERT"],
        "attention": {"seq_op_in_fp32": False},
        "classification_head": {"include_ff_layer": True},
        "embedding": {"pad_token_id": 1, "stable_low_precision": False},
        "ffn_layer_frequency": 1,
        "init": {"std": 0.02, "type": "normal"},
        "loss": "cross-entropy",
        "norm_scheme": "pre",
        "num_labels": None,
        "objective_layout": "MLM",
        "sparse_prediction": 0.25,
        "tie_weights": True,
    },
}

# What of our settings such a model has, and the variants.
WANTED: dict[str, tuple[Any, ...]] = {
    "encoder_normalize_before": (True,),
    "layernorm_embedding": (True,),
    "final_norm": (True,),
    "residual_dropout": (None,),
    "linear_bias": (False,),
    "no_scale_embedding": (True,),
    "type_vocab_size": (0,),
    "zero_masking": (False,),
    "untie_weights_roberta": (False,),
    "spectral_norm_classification_head": (False,),
    "activation_fn": tuple(ACTIVATIONS.values()),
    "pooler_activation_fn": tuple(POOLER_ACTIVATIONS.values()),
    "pooling": tuple(POOLINGS.values()),
}
SLOTS = {
    "token_mixer": ("self_attention",),
    "channel_mixer": ("fff", "feed_forward"),
    "positions": ("scaled_sinusoidal",),
    "attention_bias": ("none",),
    "lm_head": ("product",),
}


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our settings of the model that the file ``config`` describes. Raises CheckpointError for other kinds of models."""
    arch = config.get("arch", config)
    for path, wanted in FIXED.items():
        found = _get(arch, path, wanted)
        if found != wanted:
            raise CheckpointError(f"{path} is {found!r} in config.json, but only {wanted!r} can be converted")
    try:
        head = arch.get("classification_head") or {}
        dropout = float(_get(arch, "hidden_dropout_prob", 0.1))
        if _get(arch, "embedding.dropout_prob", dropout) != dropout:
            logger.warning(
                "the dropout of the embeddings differs from that of the layers: %s is used for both", dropout
            )
        settings: dict[str, Any] = {
            "encoder_layers": int(arch["num_transformer_layers"]),
            "encoder_embed_dim": int(arch["hidden_size"]),
            "encoder_attention_heads": int(arch["attention"]["num_attention_heads"]),
            "max_positions": int(arch["embedding"]["max_seq_length"]),
            "layer_norm_eps": float(_get(arch, "norm_eps", 1e-12)),
            "activation_fn": _known(ACTIVATIONS, "nonlin", arch.get("nonlin", "GELU")),
            "dropout": dropout,
            "attention_dropout": float(_get(arch, "attention.dropout_prob", 0.1)),
            "product_bias": bool(_get(arch, "decoder_bias", False)),
            "pooling": _known(POOLINGS, "classification_head.pooler", head.get("pooler", "zero_index")),
            "pooler_inner_dim": int(head.get("head_dim", 1024)),
            "pooler_dropout": float(head.get("classifier_dropout", 0.1)),
            "pooler_activation_fn": _known(
                POOLER_ACTIVATIONS, "classification_head.nonlin", head.get("nonlin", "Tanh")
            ),
            **_channel_mixer(arch),
        }
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(f"config.json does not describe an UltraFastBERT: {error!r}") from None
    width, heads = settings["encoder_embed_dim"], settings["encoder_attention_heads"]
    if heads < 1 or width < 1 or width % heads:
        raise CheckpointError(
            f"config.json has {heads} attention heads and the width {width}, which is no multiple of it"
        )
    return settings


def _channel_mixer(arch: Mapping[str, Any]) -> dict[str, Any]:
    kind, size = arch["intermed_type"], int(arch["intermed_size"])
    if kind == "fff":
        return {"channel_mixer": "fff", "fff_trees": size, "fff_depth": int(arch["intermed_depth"])}
    if kind == "ff":
        return {"encoder_ffn_embed_dim": size}
    raise CheckpointError(f"intermed_type is {kind!r} in config.json, but only 'fff' and 'ff' can be converted")


def config_of(
    config: RobertaConfig, vocab: int, classes: int | None, origin: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The file for a model with the settings ``config``, over what its ``origin`` says if it came from such a file."""
    channels = config.variants["channel_mixer"]
    fff = channels.name == "fff"
    names = {ours: theirs for table in (POOLER_ACTIVATIONS, POOLINGS) for theirs, ours in table.items()}
    own: dict[str, Any] = {
        "num_transformer_layers": config.encoder_layers,
        "hidden_size": config.encoder_embed_dim,
        "hidden_dropout_prob": config.dropout,
        "intermed_type": "fff" if fff else "ff",
        "intermed_size": channels.options["trees"] if fff else config.encoder_ffn_embed_dim,
        "intermed_depth": channels.options["depth"] if fff else 0,
        "nonlin": names[config.activation_fn],
        "norm_eps": config.layer_norm_eps,
        "decoder_bias": config.variants["lm_head"].options["bias"],
        "attention": {
            "num_attention_heads": config.encoder_attention_heads,
            "dropout_prob": config.attention_dropout,
        },
        "embedding": {
            "dropout_prob": config.dropout,
            "embedding_dim": config.encoder_embed_dim,
            "max_seq_length": config.max_positions,
            "vocab_size": vocab,
        },
        "classification_head": {
            "pooler": names[config.pooling],
            "nonlin": names[config.pooler_activation_fn],
            "head_dim": config.pooler_inner_dim or config.encoder_embed_dim,
            "classifier_dropout": config.pooler_dropout,
        },
    }
    if classes is not None:
        own["num_labels"] = classes
    for path, value in FIXED.items():
        _set(own, path, value)
    result = _merged(copy.deepcopy(TEMPLATE), origin or {})
    return _merged(result, {"arch": own}) if "arch" in result else _merged(result, own)


def stored_configuration(state: Mapping[str, Any]) -> RobertaConfig:
    """The settings in the checkpoint ``state``. Raises CheckpointError for what an UltraFastBERT cannot have."""
    return portable.read_configuration(state, "an UltraFastBERT", WANTED, SLOTS)


def _get(node: Any, path: str, otherwise: Any) -> Any:
    for key in path.split("."):
        if not isinstance(node, Mapping) or key not in node:
            return otherwise
        node = node[key]
    return node


def _set(node: dict[str, Any], path: str, value: Any) -> None:
    *sections, key = path.split(".")
    for section in sections:
        node = node.setdefault(section, {})
    node[key] = value


def _merged(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, objects within objects too."""
    for key, value in above.items():
        inner = below.get(key)
        below[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return below


def _known(table: Mapping[str, str], what: str, name: Any) -> str:
    if name not in table:
        raise CheckpointError(f"{what} is {name!r} in config.json, but only {', '.join(table)} can be converted")
    return table[name]
