"""``config.json`` of BiGS and our settings, both ways."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

from fairseq.errors import CheckpointError
from fairseq.interop import portable
from fairseq.models.roberta.config import RobertaConfig

logger = logging.getLogger(__name__)

# Their activation of the LM head -> ours.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_accurate",
    "gelu_fast": "gelu_fast",
    "gelu_pytorch_tanh": "gelu_accurate",
    "linear": "linear",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
POOLINGS = {"non_padding_mean": "masked_mean", "mean": "mean"}
# The activation in the block, which no setting names: it depends on the program.
BLOCK = {"torch": "gelu", "flax": "gelu_accurate"}
TEMPLATE: dict[str, Any] = {
    "model_type": "BiGS",
    "decode": False,
    "initializer_range": 0.02,
    "use_cache": True,
    "use_pykeops_kernel": False,
}
WANTED: dict[str, tuple[Any, ...]] = {
    "final_norm": (False,),
    "residual_dropout": (0.0,),
    "layernorm_embedding": (True,),
    "no_scale_embedding": (True,),
    "zero_masking": (False,),
    "spectral_norm_classification_head": (False,),
    "linear_bias": (True,),
    "pooler_input_dropout": (False,),
    "pooler_activation_fn": ("tanh",),
    "pooler_inner_dim": (None,),
    "activation_fn": tuple(ACTIVATIONS.values()),
    "pooling": tuple(POOLINGS.values()),
}
SLOTS: dict[str, tuple[str, ...]] = {
    "token_mixer": ("bigs",),
    "channel_mixer": ("none",),
    "positions": ("learned", "none"),
    "attention_bias": ("none",),
    "lm_head": ("roberta",),
}


def bigs_settings(config: Mapping[str, Any], program: str) -> dict[str, Any]:
    """Our settings of the model that ``program`` (torch or flax) makes of the file ``config``. Raises CheckpointError."""
    kind = config.get("model_type", "BiGS")
    if str(kind).lower() != "bigs":
        raise CheckpointError(f"model_type is {kind!r} in config.json, but must be 'BiGS'")
    dropout = config.get("hidden_dropout_prob", 0.1)
    of_classifier = config.get("classifier_dropout")
    try:
        return {
            "encoder_layers": int(config.get("num_hidden_layers", 24)),
            "encoder_embed_dim": int(config.get("hidden_size", 768)),
            "encoder_ffn_embed_dim": int(config.get("intermediate_size", 3072)),
            "max_positions": int(config.get("max_position_embeddings", 512)),
            "type_vocab_size": int(config.get("type_vocab_size", 2)),
            "layer_norm_eps": float(config.get("layer_norm_eps", 1e-12)),
            "dropout": float(dropout),
            "pooler_dropout": float(dropout if of_classifier is None else of_classifier),
            "pooling": POOLINGS.get(str(config.get("pooler_type", "non_padding_mean")), "masked_mean"),
            "activation_fn": _activation(config.get("hidden_act", "gelu")),
            "encoder_normalize_before": program == "torch" or bool(config.get("pre_norm", True)),
            "untie_weights_roberta": not config.get("tie_word_embeddings", True),
            "bigs_num_ssm": int(config.get("num_ssm", 64)),
            "bigs_spectrum": _spectrum(config, program),
            "bigs_activation": BLOCK[program],
            "bigs_padding": "leak",
            **_positions(config, program),
        }
    except (OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(f"config.json does not describe a BiGS: {error!r}") from None


def warn_of_port(config: Mapping[str, Any]) -> None:
    """Say in what BiGS in PyTorch differs from the program that trained the published models."""
    logger.warning(
        "BiGS in PyTorch has the exact GELU within its blocks, and so has this model; the published models were trained with "
        "its tanh form (set model.bigs_activation=gelu_accurate for that)"
    )
    if not config.get("pre_norm", True):
        logger.warning(
            "pre_norm is false in config.json, which BiGS in PyTorch ignores, and so does this model (set "
            "model.encoder_normalize_before=false for weights of a post-norm model)"
        )


def _activation(name: Any) -> str:
    if name not in ACTIVATIONS:
        raise CheckpointError(
            f"hidden_act is {name!r} in config.json, but only {', '.join(ACTIVATIONS)} can be converted"
        )
    return ACTIVATIONS[name]


def _spectrum(config: Mapping[str, Any], program: str) -> str:
    """How modes were drawn: PyTorch always draws linear frequencies, Flax those of HiPPO for names that it does not know."""
    scaling = str(config.get("scaling", "hippo"))
    return "lin" if program == "torch" else scaling if scaling in ("lin", "inv") else "hippo"


def _positions(config: Mapping[str, Any], program: str) -> dict[str, Any]:
    if program == "torch" and config.get("position_embedding_type", "absolute") != "absolute":
        return {"positions": "none"}
    return {"learned_offset": 0, "learned_by_column": True}


def bigs_configuration(state: Mapping[str, Any]) -> RobertaConfig:
    """The settings in the checkpoint ``state``. Raises CheckpointError for what a BiGS cannot have."""
    config = portable.read_configuration(state, "a BiGS", WANTED, SLOTS)
    positions = config.variants["positions"]
    if positions.name == "learned" and (positions.options["offset"] != 0 or not positions.options["by_column"]):
        raise CheckpointError(
            "a BiGS cannot be this model: its positions are counted by column from row 0 "
            "(learned_offset=0, learned_by_column=true)"
        )
    if config.variants["token_mixer"].options["padding"] == "masked":
        logger.warning("the model leaves padding out, but BiGS reads it: results will depend on padding there")
    return config


def bigs_file(
    config: RobertaConfig, program: str, vocab: int, labels: int | None, pad: int, origin: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The file for ``program``, over what its ``origin`` says if it came from such a file. Raises CheckpointError."""
    options = config.variants["token_mixer"].options
    if options["activation"] != BLOCK[program]:
        logger.warning(
            "BiGS in %s has the activation %s within its blocks, but this model has %s: results will differ a little",
            {"torch": "PyTorch", "flax": "Flax"}[program],
            BLOCK[program],
            options["activation"],
        )
    if program == "torch" and not config.encoder_normalize_before:
        raise CheckpointError("BiGS in PyTorch cannot be this model: it has encoder_normalize_before=False")
    if program == "flax" and config.variants["positions"].name == "none":
        raise CheckpointError("BiGS in Flax cannot be this model: it has positions=none")
    heads = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    poolings = {ours: theirs for theirs, ours in POOLINGS.items()}
    own: dict[str, Any] = {
        "vocab_size": vocab,
        "num_hidden_layers": config.encoder_layers,
        "hidden_size": config.encoder_embed_dim,
        "intermediate_size": config.encoder_ffn_embed_dim,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.type_vocab_size,
        "layer_norm_eps": config.layer_norm_eps,
        "hidden_dropout_prob": config.dropout,
        "classifier_dropout": None if config.pooler_dropout == config.dropout else config.pooler_dropout,
        "pooler_type": poolings[config.pooling],
        "hidden_act": heads[config.activation_fn],
        "pre_norm": config.encoder_normalize_before,
        "tie_word_embeddings": not config.untie_weights_roberta,
        "position_embedding_type": "absolute" if config.variants["positions"].name == "learned" else "none",
        "num_ssm": options["num_ssm"],
        "scaling": options["spectrum"],
        "pad_token_id": pad,
    }
    if labels is not None:
        own["num_labels"] = labels
    if not origin:
        return {**TEMPLATE, **own}
    # What means the same stays as it was written.
    result, meaning = copy.deepcopy(dict(origin)), bigs_settings(origin, program)
    changes = {key: value for key, value in own.items() if bigs_settings({**origin, key: value}, program) != meaning}
    return {**result, **changes}
