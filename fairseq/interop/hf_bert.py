"""BERT of Transformers, read into our encoder: token types, positions by column, BERT's word pieces.

Their pooler and classifier are one of our classification heads. The prediction of the next sentence is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq.errors import ConfigError
from fairseq.interop import vocabulary
from fairseq.interop.hf_names import (
    HEAD,
    LM_HEAD,
    POSITIONS,
    TYPES,
    all_names,
    complete_lm_head,
    encoder_settings,
    keep_decoder_bias,
    lower_case,
    renamed,
    stored_bpe,
    vocabulary_size,
    with_prefix,
)
from fairseq.interop.portable import (
    VOCABULARY,
    PortableModel,
    files_beside,
    make_state,
    read_weights,
    reads,
    recognized_config,
)
from fairseq.registry import FORMATS

logger = logging.getLogger(__name__)

PREDICTIONS = "cls.predictions."
OUTSIDE = {
    f"{PREDICTIONS}transform.dense.weight": f"{LM_HEAD}dense.weight",
    f"{PREDICTIONS}transform.dense.bias": f"{LM_HEAD}dense.bias",
    f"{PREDICTIONS}transform.LayerNorm.weight": f"{LM_HEAD}layer_norm.weight",
    f"{PREDICTIONS}transform.LayerNorm.bias": f"{LM_HEAD}layer_norm.bias",
    f"{PREDICTIONS}decoder.weight": f"{LM_HEAD}weight",
    f"{PREDICTIONS}bias": f"{LM_HEAD}bias",
}
CLASSIFIER = {
    "bert.pooler.dense.weight": f"classification_heads.{HEAD}.dense.weight",
    "bert.pooler.dense.bias": f"classification_heads.{HEAD}.dense.bias",
    "classifier.weight": f"classification_heads.{HEAD}.out_proj.weight",
    "classifier.bias": f"classification_heads.{HEAD}.out_proj.bias",
}
OTHER_HEADS = {  # beginnings of names, for heads without the pooler
    "classifier.": "classification_heads.token_classification_head.out_proj.",
    "qa_outputs.": "classification_heads.question_answering_head.out_proj.",
}
LEFT_OUT = ("cls.seq_relationship.",)


@FORMATS.register("hf-bert")
class HuggingFaceBert:
    """``config.json``, ``model.safetensors`` or ``pytorch_model.bin``, ``tokenizer.json`` or ``vocab.txt``; read only."""

    @staticmethod
    def recognizes(config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == "bert"

    @staticmethod
    @reads("a BERT")
    def read(folder: Path, special: Mapping[str, int]) -> PortableModel:
        config = recognized_config(folder, HuggingFaceBert.recognizes, "a BERT")
        theirs = with_prefix(read_weights(folder), "bert")
        theirs = {key: value for key, value in theirs.items() if not key.startswith(LEFT_OUT)}
        tied = config.get("tie_word_embeddings", True)
        keep_decoder_bias(theirs, f"{PREDICTIONS}decoder.bias", f"{PREDICTIONS}bias", tied)
        settings = encoder_settings(config)
        names = all_names("bert", settings["encoder_layers"], {**OUTSIDE, **_heads(theirs)})
        size = vocabulary_size(theirs, "bert", "a BERT")
        ids = vocabulary.special_ids(folder, special, size, {"pad": config.get("pad_token_id", 0)})
        order = vocabulary.our_order(ids, size)
        weights = renamed(
            {key: theirs[key] for key in theirs if key in names or not key.startswith("bert.pooler.")},
            names,
            order,
            "a BERT",
        )
        settings |= {
            "untie_weights_roberta": not complete_lm_head(weights, tied, "BERT"),
            "max_positions": len(weights[POSITIONS]),
            "type_vocab_size": len(weights[TYPES]),
            "learned_offset": 0,
            "learned_by_column": True,
            "zero_padding": False,
            "pooler_input_dropout": False,
        }
        files = files_beside(folder)
        bpe = stored_bpe(files, lambda: lower_case(folder))
        pieces = vocabulary.vocabulary_lines(files[VOCABULARY]) if bpe and bpe["_name"] == "bert" else None
        symbols = vocabulary.symbols(order, pieces)
        state = make_state("roberta", settings, weights, symbols, settings["max_positions"], bpe)
        return PortableModel(state, symbols, files, {"special": ids, "rows": order}, folder)

    @staticmethod
    def write(model: PortableModel, folder: Path) -> None:
        raise ConfigError("hf-bert is only read: write hf-auto, which Transformers loads too")


def _heads(theirs: Mapping[str, Any]) -> dict[str, str]:
    """The names of the head among ``theirs``: theirs -> ours."""
    if "classifier.weight" in theirs and "bert.pooler.dense.weight" in theirs:
        return CLASSIFIER
    return {
        f"{start}{end}": f"{ours}{end}"
        for start, ours in OTHER_HEADS.items()
        for end in ("weight", "bias")
        if f"{start}{end}" in theirs
    }
