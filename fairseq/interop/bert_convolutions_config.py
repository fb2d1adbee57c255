"""``config.json`` of BERT with convolutions and our settings, both ways.

The original looks for words anywhere in its strings and takes what it does not know for plain attention; here they are
read as it reads them, and stored strictly (``fairseq.modules.conv_grammar``).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fairseq.errors import CheckpointError, ConfigError
from fairseq.interop.portable import read_configuration
from fairseq.models.roberta.config import RobertaConfig
from fairseq.modules.conv_grammar import (
    CONVBERT_REACH,
    Kernel,
    Parts,
    Projection,
    parse_kernel,
    parse_projection,
    read_options,
    spell_kernel,
    spell_projection,
)

logger = logging.getLogger(__name__)

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_accurate", "relu": "relu"}
DEFAULTS: dict[str, Any] = {
    "attention_kernel": "dot_product",
    "remove_qk": False,
    "remove_position_embeddings": False,
    "value_forward": "feedforward",
    "qk": "linear",
    "attention_head_size": -1,
    "embedding_size": 128,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}


def original_kernel(text: str) -> Kernel:
    """What the original makes of ``attention_kernel``."""
    if text == "convbert":
        return Kernel(convbert="key", reach=CONVBERT_REACH)
    words = {word: word in text for word in ("convfixed", "convq", "convk", "convolution", "convolution_scaled")}
    tables = words["convfixed"] or words["convq"] or words["convk"]
    reach = None
    if any(words.values()):
        _, *numbers = text.split()
        if not numbers or not numbers[0].isdecimal() or int(numbers[0]) < 1:
            raise CheckpointError(
                f"attention_kernel {text!r} in config.json has no reach of at least 1 as its second word"
            )
        reach = int(numbers[0])
    depthwise = "scaled" if words["convolution_scaled"] else "plain" if words["convolution"] else "none"
    return Kernel(
        content=not tables or "qk" in text or "dot" in text,
        fixed=words["convfixed"],
        query=words["convq"],
        key=words["convk"],
        depthwise=depthwise,
        reach=reach,
    )


def original_projection(key: str, text: str) -> Projection:
    """What the original makes of ``value_forward`` and ``qk``."""
    if key == "qk" and text == "none":
        return Projection(kind="none")
    if key == "qk" and text == "convbert":
        raise CheckpointError("qk is 'convbert' in config.json, which the original cannot run either")
    if not text.startswith("convolution"):
        return Projection()
    name, *numbers = text.split()
    if len(numbers) < 2 or not all(number.isdecimal() and int(number) >= 1 for number in numbers[:2]):
        raise CheckpointError(f"{key} {text!r} in config.json needs a reach and groups, both at least 1")
    depth = "depth" in name
    return Projection(
        kind="depthwise" if depth else "convolution",
        mixed="mixed" in name,
        activation=not depth or "no_act" not in name,
        reach=int(numbers[0]),
        groups=1 if depth else int(numbers[1]),
    )


def original_parts(config: Mapping[str, Any]) -> Parts:
    """The attention of the file ``config``."""
    values = {**DEFAULTS, **config}
    kernel = original_kernel(str(values["attention_kernel"]))
    value = original_projection("value_forward", str(values["value_forward"]))
    query_key = Projection(kind="none") if values["remove_qk"] else original_projection("qk", str(values["qk"]))
    if kernel.convbert != "none":
        value = query_key = Projection()
    width, heads, given = (int(values[key]) for key in ("hidden_size", "num_attention_heads", "attention_head_size"))
    size = given if given > 0 else width // heads
    return Parts(kernel, query_key, value, None if size * heads == width else size)


def bert_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our settings of the model that the file ``config`` describes."""
    values = {**DEFAULTS, **config}
    try:
        parts = original_parts(config)
        settings: dict[str, Any] = {
            "encoder_layers": int(values["num_hidden_layers"]),
            "encoder_embed_dim": int(values["hidden_size"]),
            "encoder_ffn_embed_dim": int(values["intermediate_size"]),
            "encoder_attention_heads": int(values["num_attention_heads"]),
            "max_positions": int(values["max_position_embeddings"]),
            "layer_norm_eps": float(values["layer_norm_eps"]),
            "type_vocab_size": int(values["type_vocab_size"]),
            "dropout": float(values["hidden_dropout_prob"]),
            "attention_dropout": float(values["attention_probs_dropout_prob"]),
            "pooler_dropout": float(values["hidden_dropout_prob"]),
            "activation_fn": ACTIVATIONS[values["hidden_act"]],
            "conv_attention_kernel": spell_kernel(parts.kernel),
            "conv_attention_value_projection": spell_projection(parts.value),
            "conv_attention_query_key_projection": spell_projection(parts.query_key),
        }
        if int(values["embedding_size"]) != settings["encoder_embed_dim"]:
            settings["embedding_size"] = int(values["embedding_size"])
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"config.json does not describe a BERT with convolutions: {error!r}") from None
    if parts.head_dim is not None:
        settings["conv_attention_head_dim"] = parts.head_dim
    if not values["remove_position_embeddings"]:
        settings |= {"positions": "learned", "learned_offset": 0, "learned_by_column": True}
    _say_what_was_read(values)
    return settings


def _say_what_was_read(values: Mapping[str, Any]) -> None:
    for key, read in (
        ("attention_kernel", parse_kernel),
        ("value_forward", parse_projection),
        ("qk", parse_projection),
    ):
        try:
            read(str(values[key]))
        except ConfigError as error:
            logger.warning("%s in config.json is read as the original reads it, although %s", key, error)


def bert_config(
    config: RobertaConfig, vocab: int, classes: int | None, pad: int, origin: Mapping[str, Any]
) -> dict[str, Any]:
    """The file for a model with the settings ``config``, over what its ``origin`` says if it came from such a file."""
    parts = read_options(**config.variants["token_mixer"].options)
    kernel = spell_kernel(parts.kernel)
    if kernel is None:
        raise CheckpointError(
            "a BERT with convolutions makes ConvBERT's weights at the key and reaches 4 tokens, but this model has "
            f"conv_attention_convbert={parts.kernel.convbert} and conv_attention_reach={parts.kernel.reach}"
        )
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    none = parts.query_key.kind == "none"
    own: dict[str, Any] = {
        "num_hidden_layers": config.encoder_layers,
        "hidden_size": config.encoder_embed_dim,
        "intermediate_size": config.encoder_ffn_embed_dim,
        "num_attention_heads": config.encoder_attention_heads,
        "max_position_embeddings": config.max_positions,
        "layer_norm_eps": config.layer_norm_eps,
        "type_vocab_size": config.type_vocab_size,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "hidden_act": names[config.activation_fn],
        "embedding_size": config.embedding_size or config.encoder_embed_dim,
        "remove_position_embeddings": config.variants["positions"].name == "none",
        "vocab_size": vocab,
        "pad_token_id": pad,
    }
    # The strings of the origin stay where they mean the same.
    spelt: dict[str, Any] = {
        "attention_kernel": kernel,
        "value_forward": spell_projection(parts.value),
        "qk": "linear" if none else spell_projection(parts.query_key),
        "remove_qk": none,
        "attention_head_size": parts.head_dim or -1,
    }
    if not origin or original_parts({**origin, **own}) != parts:
        own |= spelt
    if classes is not None and "num_labels" in origin:
        own["num_labels"] = classes
    elif classes not in (None, len(origin.get("id2label") or {}) or 2):
        own["id2label"] = {str(label): f"LABEL_{label}" for label in range(classes or 0)}
        own["label2id"] = {f"LABEL_{label}": label for label in range(classes or 0)}
    known = {key: value for key, value in own.items() if key in origin or value != DEFAULTS.get(key)}
    return (
        {"model_type": "bert", "architectures": ["BertForMaskedLM"], **DEFAULTS, **own}
        if not origin
        else {**origin, **known}
    )


WANTED: dict[str, tuple[Any, ...]] = {  # values that a model of this kind may have
    "encoder_normalize_before": (False,),
    "layernorm_embedding": (True,),
    "linear_bias": (True,),
    "no_scale_embedding": (True,),
    "zero_masking": (False,),
    "untie_weights_roberta": (False,),
    "spectral_norm_classification_head": (False,),
    "activation_fn": tuple(ACTIVATIONS.values()),
    "pooler_activation_fn": ("tanh",),
    "pooling": ("first",),
}
SLOTS = {  # and variants
    "token_mixer": ("conv_attention",),
    "channel_mixer": ("feed_forward",),
    "positions": ("none", "learned"),
    "attention_bias": ("none",),
    "lm_head": ("roberta",),
}


def bert_configuration(state: Mapping[str, Any]) -> RobertaConfig:
    """The settings in the checkpoint ``state``. Raises CheckpointError for what a BERT with convolutions cannot have."""
    config = read_configuration(state, "a BERT with convolutions", WANTED, SLOTS)
    if config.type_vocab_size < 1:
        raise CheckpointError(
            f"a BERT with convolutions cannot be this model: it has type_vocab_size={config.type_vocab_size}"
        )
    return config
