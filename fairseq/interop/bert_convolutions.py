"""Folders of BERT with convolutions (Chang et al. 2021, "Convolutions and Self-Attention", ACL).

The weights are those of the preset ``bert_conv_base`` under other names; tables have further dimensions of length one. Their
files also store what follows from the settings: the matrix of relative positions, position ids, tied matrices, and the
scalars of unscaled depthwise convolutions, which are ones.

Legend: V vocabulary, H heads, w reach, P longest input.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq.checkpoint.atomic import atomic_save
from fairseq.data.dictionary import Dictionary
from fairseq.data.encoders.configs import SentencepieceConfig
from fairseq.data.encoders.libraries import SentencepieceBPE
from fairseq.errors import CheckpointError
from fairseq.interop import vocabulary
from fairseq.interop.bert_convolutions_config import bert_config, bert_configuration, bert_settings
from fairseq.interop.portable import (
    CONFIG,
    PICKLE,
    SENTENCEPIECE,
    TOKENIZER_CONFIG,
    PortableModel,
    files_beside,
    heads_in,
    load_json,
    make_state,
    read_weights,
    save_json,
    write_weights,
)
from fairseq.models.roberta.config import RobertaConfig
from fairseq.modules.conv_grammar import read_options
from fairseq.registry import FORMATS

logger = logging.getLogger(__name__)

HEAD = "sentence_classification_head"
WORDS, WORD_BIAS = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"
POSITIONS = "bert.embeddings.position_embeddings.weight"
TIED = {"cls.predictions.decoder.weight": WORDS, "cls.predictions.decoder.bias": WORD_BIAS}
OUR_WORDS, OUR_HEAD = "encoder.sentence_encoder.embed_tokens.weight", "encoder.lm_head."
_NORM = "layernorm_embedding"
MODULES = {  # their module -> ours
    "bert.embeddings.word_embeddings": "encoder.sentence_encoder.embed_tokens",
    "bert.embeddings.position_embeddings": "encoder.sentence_encoder.embed_positions",
    "bert.embeddings.token_type_embeddings": "encoder.sentence_encoder.embed_token_types",
    "bert.embeddings.LayerNorm": f"encoder.sentence_encoder.{_NORM}",
    "bert.embeddings_project": "encoder.sentence_encoder.embed_projection",
    "cls.predictions.transform.dense": "encoder.lm_head.dense",
    "cls.predictions.transform.LayerNorm": "encoder.lm_head.layer_norm",
    "cls.predictions": "encoder.lm_head",
    "bert.pooler.dense": f"classification_heads.{HEAD}.dense",
    "classifier": f"classification_heads.{HEAD}.out_proj",
}
_PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
INSIDE = {  # within a layer
    **{f"attention.self.{theirs}": f"self_attn.{ours}" for theirs, ours in _PROJECTIONS.items()},
    **{
        f"attention.self.{theirs}_{part}": f"self_attn.{ours}.{part}"
        for theirs, ours in _PROJECTIONS.items()
        for part in ("conv", "pointwise", "linear")
    },
    "attention.self.convolution": "self_attn.depthwise",
    "attention.self.convbert_key_depthwise": "self_attn.key_depthwise",
    "attention.self.convbert_key_pointwise": "self_attn.key_pointwise",
    "attention.self.lightweight_kernel": "self_attn.weight_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "self_attn_layer_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "final_layer_norm",
}
TABLES = {  # their parameter of a layer -> ours, and the dimensions of length one that it lacks
    "attention.self.convfixed_param": ("self_attn.fixed_table", (0, 2)),
    "attention.self.convq_param": ("self_attn.query_table", ()),
    "attention.self.convk_param": ("self_attn.key_table", ()),
    "attention.self.convolution_scalar": ("self_attn.depthwise_scale", (0, 2, 3)),
}
DERIVED = ("position_ids", "relative_positions_mat")
_LAYER = re.compile(r"bert\.encoder\.layer\.(\d+)\.(.+)")
_OUR_LAYER = re.compile(r"encoder\.sentence_encoder\.layers\.(\d+)\.(.+)")


@FORMATS.register("bert-convolutions")
class BertConvolutions:
    """``config.json``, ``pytorch_model.bin`` or ``model.safetensors``, and ``spiece.model`` if there is one.

    Both files of weights are written: the original's program reads the first only.
    """

    @staticmethod
    def read(folder: Path, special: Mapping[str, int]) -> PortableModel:
        config = load_json(folder / CONFIG)
        settings = bert_settings(config)
        stored = read_weights(folder)
        theirs = stored if any(key.startswith(("bert.", "cls.")) for key in stored) else _with_prefix(stored)
        if WORDS not in theirs:
            raise CheckpointError(f"the weights lack {WORDS}: they are not those of a BERT with convolutions")
        size, files = len(theirs[WORDS]), files_beside(folder)
        pieces = _pieces(files[SENTENCEPIECE]) if SENTENCEPIECE in files else None
        ids = vocabulary.special_ids(folder, special, size, _usual(config, size, pieces))
        order = vocabulary.our_order(ids, size)
        symbols = vocabulary.symbols(order, pieces)
        scaled = "convolution_scaled" in settings["conv_attention_kernel"]
        weights = weights_from_bert(theirs, order, scaled)
        complete = _with_head(weights, settings, size)
        bpe = None if pieces is None else _bpe(files)
        state = make_state("bert_conv_base", settings, complete, symbols, settings["max_positions"], bpe)
        origin: dict[str, Any] = {"special": ids, "rows": order, "config": config, "keys": sorted(stored)}
        return PortableModel(state, symbols, files, origin)

    @staticmethod
    def write(model: PortableModel, folder: Path) -> None:
        config = bert_configuration(model.state)
        weights = model.state["model"]
        size = len(weights[OUR_WORDS])
        order = model.origin.get("rows") or range(size)
        if not model.origin:
            logger.warning(
                "rows stay in the order of dict.txt (pad is 1, <mask> the last one): there is no conversion.json beside the "
                "checkpoint, and --special does not say which ids its tokenizer has"
            )
        theirs = weights_to_bert(weights, order, config)
        theirs = _as_in(theirs, model.origin.get("keys") or list(theirs))
        written = bert_config(config, size, heads_in(weights).get(HEAD), order[1], model.origin.get("config") or {})
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(theirs, folder)
        atomic_save({key: value.contiguous() for key, value in theirs.items()}, folder / PICKLE)
        save_json(written, folder / CONFIG)


def _with_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the encoder alone as a part of a whole model."""
    return {f"bert.{key}": value for key, value in weights.items()}


def _as_in(weights: dict[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """``weights`` as a file with these ``names`` has them: without its prefix, its head or what follows from settings if it
    has none."""
    if not any(name.startswith(("bert.", "cls.")) for name in names):
        weights = {key.removeprefix("bert."): value for key, value in weights.items()}
    optional = {key for key in weights if key.startswith("cls.") or key.endswith(DERIVED)}
    return {key: value for key, value in weights.items() if key in names or key not in optional}


def _pieces(path: Path) -> list[str]:
    """The pieces of a sentencepiece model by id; "" for those that no text gives."""
    model = SentencepieceBPE(SentencepieceConfig(sentencepiece_model=str(path))).sp
    return ["" if model.IsControl(row) or model.IsUnknown(row) else model.IdToPiece(row) for row in range(len(model))]


def _bpe(files: Mapping[str, Path]) -> dict[str, Any]:
    """The original reads text with ALBERT's tokenizer, in lower case, and saves its (empty) settings beside it."""
    settings = TOKENIZER_CONFIG in files and load_json(files[TOKENIZER_CONFIG]).get("do_lower_case", True)
    bpe: dict[str, Any] = {"_name": "sentencepiece", "sentencepiece_model": SENTENCEPIECE}
    return {**bpe, "sentencepiece_albert": True} if settings else bpe


def _usual(config: Mapping[str, Any], size: int, pieces: Sequence[str] | None) -> dict[str, int]:
    """Where the original puts its special tokens: behind the pieces; <unk> is piece 0. Nothing for another vocabulary."""
    pad = config.get("pad_token_id", 0)
    if type(pad) is not int:
        raise CheckpointError(f"pad_token_id is {pad!r:.60} in config.json, but must be an integer")
    first = pad - 2 if pieces is None else len(pieces)
    if first < 1 or first + 4 != size:
        return {}
    return {"unk": 0, "cls": first, "sep": first + 1, "pad": first + 2, "mask": first + 3}


def weights_from_bert(theirs: Mapping[str, Tensor], order: Sequence[int], scaled: bool) -> dict[str, Tensor]:
    """Their tensors under our names, with rows in our ``order``; ``scaled``: scalars of convolutions are trained.

    Raises CheckpointError for unknown ones.
    """
    weights: dict[str, Tensor] = {}
    classifies = "classifier.weight" in theirs
    for key, value in theirs.items():
        if key in TIED or key.endswith(DERIVED):
            continue
        if key.startswith("bert.pooler.") and not classifies:
            logger.warning("%s is left out: without a classifier there is no head that it would belong to", key)
            continue
        ours, squeezed = _our_key(key)
        value = value.reshape([n for axis, n in enumerate(value.shape) if axis not in squeezed])
        if ours.endswith("depthwise_scale") and not scaled:
            if not bool((value == 1).all()):
                raise CheckpointError(f"{key} is not one, although config.json says that it is not trained")
            continue
        weights[ours] = vocabulary.to_ours(value, order) if key in (WORDS, WORD_BIAS) else value
    if "cls.predictions.transform.dense.weight" in theirs:
        weights[f"{OUR_HEAD}weight"] = weights[OUR_WORDS]
    weights["encoder.sentence_encoder.version"] = torch.tensor([3.0])
    return weights


def _our_key(key: str) -> tuple[str, tuple[int, ...]]:
    """Our name of their ``key``, and the dimensions of length one that ours has not."""
    layer = _LAYER.fullmatch(key)
    if layer and layer.group(2) in TABLES:
        ours, squeezed = TABLES[layer.group(2)]
        return f"encoder.sentence_encoder.layers.{layer.group(1)}.{ours}", squeezed
    module, _, name = (layer.group(2) if layer else key).rpartition(".")
    table = INSIDE if layer else MODULES
    if module not in table:
        raise CheckpointError(f"the weights hold {key}, which a BERT with convolutions does not have")
    prefix = f"encoder.sentence_encoder.layers.{layer.group(1)}." if layer else ""
    return f"{prefix}{table[module]}.{name}", ()


def _with_head(weights: dict[str, Tensor], settings: Mapping[str, Any], size: int) -> dict[str, Tensor]:
    """``weights`` with an untrained masked-LM head where they have none."""
    if f"{OUR_HEAD}dense.weight" in weights:
        return weights
    logger.warning("the folder has no masked-LM head: that of the converted model is untrained")
    like, dim = weights[OUR_WORDS], settings["encoder_embed_dim"]
    width = like.size(1)
    drawn = torch.empty(width, dim).normal_(0.0, 0.02, generator=torch.Generator().manual_seed(1))
    head = {
        "weight": like,
        "bias": like.new_zeros(size),
        "dense.weight": drawn.to(like),
        "dense.bias": like.new_zeros(width),
        "layer_norm.weight": like.new_ones(width),
        "layer_norm.bias": like.new_zeros(width),
    }
    return weights | {OUR_HEAD + key: value for key, value in head.items()}


def weights_to_bert(ours: Mapping[str, Tensor], order: Sequence[int], config: RobertaConfig) -> dict[str, Tensor]:
    """Our tensors under their names, with rows in their order, and what their files store beside them."""
    outside, inside = ({our: their for their, our in table.items()} for table in (MODULES, INSIDE))
    tables = {our: (their, squeezed) for their, (our, squeezed) in TABLES.items()}
    weights: dict[str, Tensor] = {}
    for key, value in ours.items():
        layer = _OUR_LAYER.fullmatch(key)
        within = layer.group(2) if layer else key
        prefix = f"bert.encoder.layer.{layer.group(1)}." if layer else ""
        module, _, name = within.rpartition(".")
        if within in tables:
            their, squeezed = tables[within]
            for axis in squeezed:
                value = value.unsqueeze(axis)
            weights[prefix + their] = value
        elif module in (inside if layer else outside) and key != f"{OUR_HEAD}weight":
            their = f"{prefix}{(inside if layer else outside)[module]}.{name}"
            if their == POSITIONS:
                value = value[_first_position(config) :]
            weights[their] = vocabulary.to_theirs(value, order) if their in (WORDS, WORD_BIAS) else value
        elif key != f"{OUR_HEAD}weight" and not key.endswith(".version"):
            logger.warning("a BERT with convolutions has no place for %s, which is left out", key)
    if not torch.equal(ours.get(f"{OUR_HEAD}weight", ours[OUR_WORDS]), ours[OUR_WORDS]):
        raise CheckpointError(
            "the head has weights of its own, but a BERT with convolutions shares those of the embeddings"
        )
    return weights | _derived(weights, config) | {alias: weights[source] for alias, source in TIED.items()}


def _first_position(config: RobertaConfig) -> int:
    """The row of our table that the first token has; theirs is 0."""
    offset = config.variants["positions"].options.get("offset")
    return Dictionary().pad() + 1 if offset is None else offset


def _derived(weights: Mapping[str, Tensor], config: RobertaConfig) -> dict[str, Tensor]:
    """What follows from the settings, but is stored."""
    limit, kernel = config.max_positions or 512, read_options(**config.variants["token_mixer"].options).kernel
    derived = {"bert.embeddings.position_ids": torch.arange(limit)[None]}
    at = torch.arange(limit)
    for layer in range(config.encoder_layers):
        prefix = f"bert.encoder.layer.{layer}.attention.self."
        if kernel.has_tables and kernel.reach is not None:
            offsets = (at - at[:, None]).clamp(-kernel.reach, kernel.reach) + kernel.reach
            derived[f"{prefix}relative_positions_mat"] = offsets[None, None]
        if kernel.depthwise != "none" and f"{prefix}convolution_scalar" not in weights:
            like = weights[f"{prefix}convolution.bias"]
            derived[f"{prefix}convolution_scalar"] = like.new_ones(1, config.encoder_attention_heads, 1, 1)
    return derived
