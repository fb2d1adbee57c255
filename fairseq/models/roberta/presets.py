"""Named RoBERTa architectures as tables of differences from the defaults of ``RobertaConfig``. Free of torch.

An architecture function fills, in place, what the user did not give: on a Namespace what is not an attribute, on a
DictConfig what is missing or null. The filled node is what a checkpoint stores.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from fairseq.dataclass.slots import architecture_values, slots_of, variant_specs
from fairseq.models.architectures import register_model_architecture
from fairseq.models.roberta.config import OLD_SETTINGS, RobertaConfig, by_old_settings, in_old_settings, old_settings
from fairseq.registry import ARCHITECTURES, BIGS_LENGTHS, FFF_SIZES

# The keys every filled node has, in the order old files have them (max_source_positions is placed after the fifth).
FILLED = (
    "encoder_layers",
    "encoder_embed_dim",
    "encoder_ffn_embed_dim",
    "encoder_attention_heads",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "pooler_dropout",
    "max_source_positions",
    "no_token_positional_embeddings",
    "encoder_alibi",
    "encoder_alibi_asymmetrical",
    "encoder_learned_pos",
    "layernorm_embedding",
    "no_scale_embedding",
    "activation_fn",
    "encoder_normalize_before",
    "pooler_activation_fn",
    "untie_weights_roberta",
    "adaptive_input",
    "encoder_layerdrop",
    "encoder_layers_to_keep",
    "quant_noise_pq",
    "quant_noise_pq_block_size",
    "quant_noise_scalar",
    "spectral_norm_classification_head",
    "contrastive_pretraining",
    "initial_beta",
    "zero_masking",
    "mask_prob",
    "l2norm_embedding",
)
DEFAULT_MAX_POSITIONS = 512

_LARGE: dict[str, Any] = {
    "encoder_layers": 24,
    "encoder_embed_dim": 1024,
    "encoder_ffn_embed_dim": 4096,
    "encoder_attention_heads": 16,
}
_ALIBI: dict[str, Any] = {
    "no_token_positional_embeddings": True,
    "encoder_alibi": True,
    "encoder_alibi_asymmetrical": True,
}
# What the fork calls learned_clap, clap, zero_clap.
_CLAP: dict[str, Any] = {"dropout": 0.0, "layernorm_embedding": False, "contrastive_pretraining": True}
_ALIBI_CLAP: dict[str, Any] = {**_ALIBI, **_CLAP, "attention_dropout": 0.0}
_ZERO_CLAP: dict[str, Any] = {**_ALIBI, **_CLAP, "zero_masking": True, "no_scale_embedding": False}


def _fff(size: str = "1x11") -> dict[str, Any]:
    """Fast feed-forward layers of ``size``, trees x depth."""
    trees, depth = map(int, size.split("x"))
    return {"channel_mixer": "fff", "fff_depth": depth, "fff_trees": trees}


# The model of the crammed BERT, and of UltraFastBERT with other channel mixers.
_CRAMMED: dict[str, Any] = {
    "encoder_layers": 16,
    "encoder_normalize_before": True,
    "linear_bias": False,
    "zero_padding": False,
    "decay_biases_and_norms": False,
    "layer_norm_eps": 1e-12,
    "positions": "scaled_sinusoidal",
    "lm_head": "product",
    "pooler_dropout": 0.1,
    "pooler_input_dropout": False,
    "pooler_inner_dim": 1024,
}
# Attention with convolutions; the tables of relative positions take the place of absolute ones.
_CONV: dict[str, Any] = {"token_mixer": "conv_attention", "no_token_positional_embeddings": True}
# BERT-base as it was pretrained with them.
_BERT_CONV: dict[str, Any] = {
    **_CONV,
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "zero_padding": False,
    "decay_biases_and_norms": False,
    "pooler_dropout": 0.1,
    "pooler_input_dropout": False,
}

# Bidirectional gated state-space models: a layer is its token mixer alone. Heads mean nothing to it.
_BIGS: dict[str, Any] = {
    "encoder_layers": 11,
    "encoder_ffn_embed_dim": 2304,
    "token_mixer": "bigs",
    "channel_mixer": "none",
    "encoder_normalize_before": True,
    "final_norm": False,
    "residual_dropout": 0.0,
}
_BIGS_LARGE: dict[str, Any] = {
    **_BIGS,
    "encoder_layers": 23,
    "encoder_embed_dim": 1024,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 16,
}
# What the published models have beside that.
_BIGS_PUBLISHED: dict[str, Any] = {
    **_BIGS_LARGE,
    "bigs_padding": "leak",
    "learned_offset": 0,
    "learned_by_column": True,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pooling": "masked_mean",
    "pooler_dropout": 0.1,
    "pooler_input_dropout": False,
}

PRESETS: dict[str, dict[str, Any]] = {
    "roberta": {},
    "roberta_base": {},
    "roberta_prenorm": {"layernorm_embedding": False, "encoder_normalize_before": True},
    "roberta_large": _LARGE,
    "xlm": {
        "encoder_layers": 16,
        "encoder_embed_dim": 1280,
        "encoder_ffn_embed_dim": 5120,
        "encoder_attention_heads": 16,
    },
    "roberta_alibi": _ALIBI,
    "roberta_alibi_large": {**_LARGE, **_ALIBI},
    "roberta_clap": _CLAP,
    "roberta_clap_large": {**_LARGE, **_CLAP},
    "roberta_alibi_clap": _ALIBI_CLAP,
    "roberta_alibi_clap_large": {**_LARGE, **_ALIBI_CLAP},
    "roberta_zero_clap": _ZERO_CLAP,
    "roberta_zero_clap_large": {**_LARGE, **_ZERO_CLAP},
    "roberta_fff": _fff(),
    "roberta_fff_large": {**_LARGE, **_fff()},
    "crammed_bert": _CRAMMED,
    "crammed_bert_3072": _CRAMMED,
    "crammed_bert_4095": {**_CRAMMED, "encoder_ffn_embed_dim": 4095},
    "roberta_conv": _CONV,
    "roberta_conv_absolute": {"token_mixer": "conv_attention"},
    "roberta_conv_depthwise": {**_CONV, "conv_attention_kernel": "qk_convolution 8"},
    "roberta_convbert": {"token_mixer": "conv_attention", "conv_attention_kernel": "convbert"},
    "bert_conv_base": _BERT_CONV,
    **{f"ultrafastbert_{size}": {**_CRAMMED, **_fff(size)} for size in FFF_SIZES},
    "roberta_bigs": _BIGS,
    "roberta_bigs_large": _BIGS_LARGE,
    **{f"bigs_{length}": {**_BIGS_PUBLISHED, "max_positions": length} for length in BIGS_LENGTHS},
}


def fill_missing(args: Any, differences: Mapping[str, Any]) -> None:
    """Give ``args`` every key it lacks: first ``differences``, then the defaults of ``RobertaConfig``."""
    defaults = RobertaConfig()
    differences = in_old_settings(differences)
    name = getattr(args, "_name", None) or getattr(args, "arch", None)
    own = {**_slots_in(architecture_values(name)), **_slots_in(differences)}
    with _unlocked(args):
        replaced = _use_old_settings(args, own)
        for name, value in differences.items():
            if name not in replaced and not _option_of_another(name, args, differences):
                _fill_one(args, name, value)
        for name in FILLED:
            if name == "max_source_positions":
                # Derived, never chosen: a value given by the user is overwritten, as it always was.
                args.max_source_positions = getattr(args, "max_positions", None) or DEFAULT_MAX_POSITIONS
            else:
                _fill_one(args, name, getattr(defaults, name))


def _slots_in(values: Mapping[str, Any]) -> dict[str, str]:
    """Slot -> variant where ``values`` name it as such, not by older settings."""
    return {slot: values[slot] for slot in OLD_SETTINGS if values.get(slot) is not None}


def _option_of_another(name: str, args: Any, differences: Mapping[str, Any]) -> bool:
    """Whether ``name`` is an option of a variant in ``differences`` whose slot holds another one in ``args``."""
    for slot, variant in _slots_in(differences).items():
        if name in variant_specs(slots_of(RobertaConfig)[slot], variant) and getattr(args, slot, variant) != variant:
            return True
    return False


def _use_old_settings(args: Any, own: Mapping[str, str]) -> set[str]:
    """Spell slots that hold a variant of the original as the original does: files of these stay readable there.

    Not those in ``own``, for which the architecture has chosen a variant that older settings cannot name, and would again
    if it found no other: there what older settings say is spelt as the slot. The result is the older settings that mean
    nothing here, because their slot says what they would.
    """
    for slot in own:
        if getattr(args, slot, None) is None and _says_something(args, slot):
            setattr(args, slot, by_old_settings(slot, {key: getattr(args, key, None) for key in old_settings(slot)}))
    given = {slot: variant for slot in OLD_SETTINGS if (variant := getattr(args, slot, None)) is not None}
    spelt = {**in_old_settings(given), **{slot: given[slot] for slot in own.keys() & given.keys()}}
    for slot in given.keys() - spelt.keys():
        if isinstance(args, RobertaConfig):
            setattr(args, slot, None)
        else:
            delattr(args, slot)
    for name, value in spelt.items():
        setattr(args, name, value)
    return {name for slot in OLD_SETTINGS.keys() & spelt.keys() for name in old_settings(slot)}


def _says_something(args: Any, slot: str) -> bool:
    """Whether an older setting of ``slot`` is not at its default in ``args``."""
    return any(getattr(args, key, None) not in (None, getattr(RobertaConfig, key)) for key in old_settings(slot))


def _fill_one(args: Any, name: str, value: Any) -> None:
    if isinstance(args, argparse.Namespace):
        # An attribute that is present but None stays None.
        if not hasattr(args, name):
            setattr(args, name, value)
    elif getattr(args, name, None) is None:
        setattr(args, name, value)


def _unlocked(args: Any) -> Any:
    if isinstance(args, argparse.Namespace):
        return contextlib.nullcontext()
    from omegaconf import DictConfig, OmegaConf, open_dict  # not above: --help asks architectures what they choose

    return (
        open_dict(args)
        if isinstance(args, DictConfig) and not OmegaConf.is_readonly(args)
        else contextlib.nullcontext()
    )


def _architecture(name: str) -> Callable[[Any], None]:
    def architecture(args: Any) -> None:
        fill_missing(args, PRESETS[name])

    architecture.__doc__ = f"What ``PRESETS[{name!r}]`` says, and the defaults."
    return register_model_architecture("roberta", name)(architecture)


base_architecture = _architecture("roberta")
roberta_base_architecture = _architecture("roberta_base")
roberta_large_architecture = _architecture("roberta_large")
roberta_prenorm_architecture = _architecture("roberta_prenorm")
xlm_architecture = _architecture("xlm")
for _name in PRESETS:
    if _name not in ARCHITECTURES.registered():
        _architecture(_name)
