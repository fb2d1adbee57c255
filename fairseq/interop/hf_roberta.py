"""RoBERTa and XLM-R of Transformers: the same model as ours under other names.

Their table of positions has our rows: positions begin at the row after that of padding. Their masked-LM head has the exact
GELU whatever the layers have, and their classifier a tanh.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fairseq.errors import CheckpointError
from fairseq.interop import vocabulary
from fairseq.interop.hf_auto import CLASSES, the_head
from fairseq.interop.hf_names import (
    HEAD,
    LM_HEAD,
    POSITIONS,
    SENTENCEPIECE,
    TYPES,
    WORDS,
    all_names,
    complete_lm_head,
    encoder_settings,
    keep_decoder_bias,
    lower_case,
    renamed,
    stored_bpe,
    vocabulary_size,
    with_prefix,
    xlmr_symbols,
)
from fairseq.interop.hf_settings import head_settings
from fairseq.interop.hf_tokenizer import write_tokenizer
from fairseq.interop.model_card import write_card
from fairseq.interop.portable import (
    CONFIG,
    PortableModel,
    config_in,
    files_beside,
    make_state,
    read_configuration,
    read_weights,
    reads,
    recognized_config,
    save_json,
    write_weights,
)
from fairseq.models.roberta.config import RobertaConfig
from fairseq.registry import FORMATS

TYPES_OF_MODEL = ("roberta", "xlm-roberta", "camembert")
OUTSIDE = {
    "lm_head.dense.weight": f"{LM_HEAD}dense.weight",
    "lm_head.dense.bias": f"{LM_HEAD}dense.bias",
    "lm_head.layer_norm.weight": f"{LM_HEAD}layer_norm.weight",
    "lm_head.layer_norm.bias": f"{LM_HEAD}layer_norm.bias",
    "lm_head.decoder.weight": f"{LM_HEAD}weight",
    "lm_head.bias": f"{LM_HEAD}bias",
}
POOLED = {  # of multiple choice, which is pooled as BERT's classifiers are
    "roberta.pooler.dense.weight": f"classification_heads.{HEAD}.dense.weight",
    "roberta.pooler.dense.bias": f"classification_heads.{HEAD}.dense.bias",
    "classifier.weight": f"classification_heads.{HEAD}.out_proj.weight",
    "classifier.bias": f"classification_heads.{HEAD}.out_proj.bias",
}
WANTED: dict[str, tuple[Any, ...]] = {
    "activation_fn": ("gelu",),
    "encoder_normalize_before": (False,),
    "layernorm_embedding": (True,),
    "linear_bias": (True,),
    "no_scale_embedding": (True,),
    "zero_masking": (False,),
    "pooling": ("first",),
    "pooler_activation_fn": ("tanh",),
    "spectral_norm_classification_head": (False,),
}
SLOTS = {
    "token_mixer": ("self_attention",),
    "channel_mixer": ("feed_forward",),
    "positions": ("learned",),
    "attention_bias": ("none",),
    "lm_head": ("roberta",),
}


@FORMATS.register("hf-roberta")
class HuggingFaceRoberta:
    """``config.json``, ``model.safetensors`` or ``pytorch_model.bin``, and the files of the tokenizer."""

    writes_tokenizer = True

    @staticmethod
    def recognizes(config: Mapping[str, Any]) -> bool:
        return config.get("model_type") in TYPES_OF_MODEL

    @staticmethod
    @reads("a RoBERTa")
    def read(folder: Path, special: Mapping[str, int]) -> PortableModel:
        config = recognized_config(folder, HuggingFaceRoberta.recognizes, "a RoBERTa")
        theirs = with_prefix(read_weights(folder), "roberta")
        tied = config.get("tie_word_embeddings", True)
        keep_decoder_bias(theirs, "lm_head.decoder.bias", "lm_head.bias", tied)
        settings = encoder_settings(config)
        if settings["activation_fn"] != "gelu" and "lm_head.dense.weight" in theirs:
            raise CheckpointError(
                f"hidden_act is {config['hidden_act']!r}, but the masked-LM head of a RoBERTa has gelu all the same, and ours "
                "that of the layers"
            )
        heads = _heads(theirs, HEAD)
        if heads is POOLED:
            settings["pooler_input_dropout"] = False
        theirs = {key: value for key, value in theirs.items() if key in heads or ".pooler." not in key}
        names = all_names("roberta", settings["encoder_layers"], {**OUTSIDE, **heads})
        size = vocabulary_size(theirs, "roberta", "a RoBERTa")
        known = {
            "cls": config.get("bos_token_id", 0),
            "pad": config.get("pad_token_id", 1),
            "sep": config.get("eos_token_id", 2),
        }
        ids = vocabulary.special_ids(folder, special, size, {"unk": 3, "mask": size - 1, **known})
        order = vocabulary.our_order(ids, size)
        weights = renamed(theirs, names, order, "a RoBERTa")
        settings["untie_weights_roberta"] = not complete_lm_head(weights, tied, "RoBERTa")
        if TYPES in weights and not weights[TYPES].any():
            del weights[TYPES]  # one type, of zeros, is none
        settings["type_vocab_size"] = len(weights[TYPES]) if TYPES in weights else 0
        if ids["pad"] != 1:
            settings["learned_offset"] = ids["pad"] + 1
        tokens = len(weights[POSITIONS]) - (ids["pad"] + 1)
        files = files_beside(folder)
        bpe = stored_bpe(files, lambda: lower_case(folder))
        pieces = bpe is not None and bpe["_name"] == "sentencepiece"
        symbols = xlmr_symbols(files[SENTENCEPIECE], order) if pieces else vocabulary.symbols(order)
        state = make_state("roberta", {**settings, "max_positions": tokens}, weights, symbols, tokens, bpe)
        return PortableModel(state, symbols, files, {"special": ids, "rows": order}, folder)

    @staticmethod
    def write(model: PortableModel, folder: Path) -> None:
        config = read_configuration(model.state, "Transformers' RoBERTa (hf-auto takes any model)", WANTED, SLOTS)
        weights = model.state["model"]
        check_expressible(config, weights)
        if getattr(config_in(model.state).task, "omit_mask", False):
            raise CheckpointError("Transformers' RoBERTa needs a row for <mask>, which this model has not: use hf-auto")
        head = the_head(weights)
        kind = head_settings(model.state, head)["kind"] if head is not None else None
        table, lm_head = weights[WORDS], weights[f"{LM_HEAD}weight"]
        tied = not config.untie_weights_roberta and table.equal(lm_head)
        names = all_names("roberta", config.encoder_layers, {**OUTSIDE, **_heads_for(kind, head)})
        theirs = {their: weights[ours] for their, ours in names.items() if ours in weights}
        if tied:
            del theirs["lm_head.decoder.weight"]
        theirs["lm_head.decoder.bias"] = theirs["lm_head.bias"]
        if TYPES not in weights:
            theirs["roberta.embeddings.token_type_embeddings.weight"] = table.new_zeros(1, table.size(1))
        settings = roberta_file(config, weights, tied)
        settings["architectures"] = [f"RobertaFor{CLASSES[kind]}"]
        if head is not None and kind != "span":
            settings["num_labels"] = len(weights[f"classification_heads.{head}.out_proj.weight"])
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(theirs, folder)
        save_json(settings, folder / CONFIG)
        longest = len(weights[POSITIONS]) - 2
        written = write_tokenizer(model, len(table), longest, folder, config.type_vocab_size > 1)
        write_card(model, settings, folder, f"AutoModelFor{CLASSES[kind]}", written, remote=False)


def check_expressible(config: RobertaConfig, weights: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for what the configuration of a RoBERTa cannot say."""
    positions, mixer = config.variants["positions"].options, config.variants["token_mixer"].options
    other = [] if f"{LM_HEAD}weight" in weights else ["no masked-LM head"]
    if positions.get("offset") not in (None, 2) or positions.get("by_column"):
        other.append("positions that begin elsewhere")
    if mixer.get("scale") is not None:
        other.append("another scale of attention scores")
    if config.embedding_size not in (None, config.encoder_embed_dim):
        other.append(f"embedding_size={config.embedding_size}")
    dense = next((value for key, value in weights.items() if key.endswith(".dense.weight") and "heads." in key), None)
    if dense is not None and len(dense) != config.encoder_embed_dim:
        other.append(f"a classification head {len(dense)} wide")
    if other:
        raise CheckpointError(f"Transformers' RoBERTa cannot be this model, which has {', '.join(other)}: use hf-auto")


def roberta_file(config: RobertaConfig, weights: Mapping[str, Tensor], tied: bool) -> dict[str, Any]:
    return {
        "model_type": "roberta",
        "vocab_size": len(weights[WORDS]),
        "hidden_size": config.encoder_embed_dim,
        "num_hidden_layers": config.encoder_layers,
        "num_attention_heads": config.encoder_attention_heads,
        "intermediate_size": config.encoder_ffn_embed_dim,
        "hidden_act": config.activation_fn,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "classifier_dropout": config.pooler_dropout,
        "max_position_embeddings": len(weights[POSITIONS]),
        "type_vocab_size": max(1, config.type_vocab_size),
        "layer_norm_eps": config.layer_norm_eps,
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": str(weights[WORDS].dtype).removeprefix("torch."),
    }


def _heads_for(kind: str | None, name: str | None) -> dict[str, str]:
    """Names of the head ``name`` of a ``kind``: theirs -> ours."""
    ours = f"classification_heads.{name}."
    names = {None: [], "classification": ["dense", "out_proj"], "token": [""], "span": [""]}[kind]
    start = "qa_outputs" if kind == "span" else "classifier"
    return {
        f"{start}{f'.{part}' if part else ''}.{end}": f"{ours}{part or 'out_proj'}.{end}"
        for part in names
        for end in ("weight", "bias")
    }


def _heads(theirs: Mapping[str, Tensor], name: str) -> dict[str, str]:
    """The names of the head that is among ``theirs``, if there is one."""
    if "classifier.dense.weight" in theirs:
        return _heads_for("classification", name)
    if "classifier.weight" in theirs and len(theirs["classifier.weight"]) == 1 and set(POOLED) <= theirs.keys():
        return POOLED
    if "classifier.weight" in theirs:
        return _heads_for("token", "token_classification_head")
    return _heads_for("span", "question_answering_head") if "qa_outputs.weight" in theirs else {}
