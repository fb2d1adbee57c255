"""Names of weights in Transformers' RoBERTa and BERT, and ours; what the formats ``hf-roberta`` and ``hf-bert`` share."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq.data.encoders.configs import SentencepieceConfig
from fairseq.data.encoders.libraries import SentencepieceBPE
from fairseq.errors import CheckpointError
from fairseq.interop import vocabulary
from fairseq.interop.portable import TOKENIZER, VOCABULARY, load_json

logger = logging.getLogger(__name__)

PREFIX = "encoder.sentence_encoder."
WORDS, LM_HEAD = "encoder.sentence_encoder.embed_tokens.weight", "encoder.lm_head."
POSITIONS, TYPES = (
    "encoder.sentence_encoder.embed_positions.weight",
    "encoder.sentence_encoder.embed_token_types.weight",
)
HEAD = "sentence_classification_head"
MERGES, VOCAB, SENTENCEPIECE = "merges.txt", "vocab.json", "sentencepiece.bpe.model"
EMBEDDINGS = {
    "embeddings.word_embeddings.weight": WORDS,
    "embeddings.position_embeddings.weight": POSITIONS,
    "embeddings.token_type_embeddings.weight": TYPES,
    "embeddings.LayerNorm.weight": "encoder.sentence_encoder.layernorm_embedding.weight",
    "embeddings.LayerNorm.bias": "encoder.sentence_encoder.layernorm_embedding.bias",
}
MODULES = {  # within a layer: theirs -> ours
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "self_attn_layer_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "final_layer_norm",
}


_NORMS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # of TensorFlow, in old files
_OLD_NORM = re.compile(r"LayerNorm\.(?:gamma|beta)$")


def all_names(prefix: str, layers: int, outside: Mapping[str, str]) -> dict[str, str]:
    """Their name -> ours, of the whole model; ``prefix`` is the name of their encoder, ``outside`` what is beside it."""
    names = {f"{prefix}.{theirs}": ours for theirs, ours in EMBEDDINGS.items()}
    for layer in range(layers):
        for theirs, ours in MODULES.items():
            for kind in ("weight", "bias"):
                name = f"encoder.sentence_encoder.layers.{layer}.{ours}.{kind}"
                names[f"{prefix}.encoder.layer.{layer}.{theirs}.{kind}"] = name
    return names | dict(outside)


def with_prefix(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """``weights`` of an encoder alone under the names they have in a model with heads, and without what is only computed."""
    kept = {key: value for key, value in weights.items() if not key.endswith(("position_ids", "token_type_ids"))}
    kept = {_OLD_NORM.sub(lambda found: _NORMS[found[0]], key): value for key, value in kept.items()}
    bare = any(key.startswith(("embeddings.", "encoder.")) for key in kept)
    return {f"{prefix}.{key}": value for key, value in kept.items()} if bare else kept


def vocabulary_size(theirs: Mapping[str, Tensor], prefix: str, kind: str) -> int:
    """Rows of the token embeddings. Raises CheckpointError where there are none."""
    table = theirs.get(f"{prefix}.embeddings.word_embeddings.weight")
    if table is None:
        raise CheckpointError(f"the weights lack those of the token embeddings: they are not those of {kind}")
    return len(table)


def renamed(
    theirs: Mapping[str, Tensor], names: Mapping[str, str], order: Sequence[int], kind: str
) -> dict[str, Tensor]:
    """``theirs`` by our names, rows of the vocabulary in our ``order``. Raises CheckpointError for unknown names."""
    unknown = sorted(theirs.keys() - names.keys())
    if unknown:
        raise CheckpointError(f"no such weights are known of {kind}: {', '.join(unknown[:3])}")
    weights = {"encoder.sentence_encoder.version": torch.tensor([3.0])}
    for key, value in theirs.items():
        ours = names[key]
        by_row = ours in (WORDS, f"{LM_HEAD}weight", f"{LM_HEAD}bias")
        weights[ours] = vocabulary.to_ours(value, order) if by_row else value
    return weights


def keep_decoder_bias(theirs: dict[str, Tensor], decoder: str, bias: str, tied: bool) -> None:
    """Of the two biases of a masked-LM head, which are one where it is tied, keep that of the ``decoder``, which counts."""
    own = theirs.pop(decoder, None)
    if own is not None and not tied:
        theirs[bias] = own


def complete_lm_head(weights: dict[str, Tensor], tied: bool, kind: str) -> bool:
    """Tie the head, and give a model without one the head that leaves features as they are before the last product.

    Returns whether it is tied.
    """
    if f"{LM_HEAD}dense.weight" not in weights:
        logger.warning("this %s has no masked-LM head: it gets one that is not trained", kind)
        rows, width = weights[WORDS].shape
        inner = len(weights.get(f"{PREFIX}embed_projection.weight", torch.empty(width)))
        weights[f"{LM_HEAD}dense.weight"], weights[f"{LM_HEAD}dense.bias"] = torch.eye(width, inner), torch.zeros(width)
        weights[f"{LM_HEAD}layer_norm.weight"] = torch.ones(width)
        weights[f"{LM_HEAD}layer_norm.bias"] = torch.zeros(width)
        weights[f"{LM_HEAD}bias"] = torch.zeros(rows)
        tied = True
    tied = tied or f"{LM_HEAD}weight" not in weights
    if tied:
        weights[f"{LM_HEAD}weight"] = weights[WORDS]
    return tied


def encoder_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes and dropouts of a post-norm encoder. Raises CheckpointError for what ours does not have."""
    if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
        raise CheckpointError("only encoders with absolute positions are read")
    activations = {"gelu": "gelu", "relu": "relu", "silu": "silu", "swish": "silu", "gelu_new": "gelu_accurate"}
    activations |= {"gelu_pytorch_tanh": "gelu_accurate", "gelu_fast": "gelu_accurate"}
    name = config.get("hidden_act", "gelu")
    if name not in activations:
        raise CheckpointError(f"the activation {name!r} is not known (known: {', '.join(activations)})")
    dropout = config.get("hidden_dropout_prob", 0.1)
    try:
        return {
            "encoder_layers": config["num_hidden_layers"],
            "encoder_embed_dim": config["hidden_size"],
            "encoder_ffn_embed_dim": config["intermediate_size"],
            "encoder_attention_heads": config["num_attention_heads"],
            "activation_fn": activations[name],
            "dropout": dropout,
            "pooler_dropout": dropout if config.get("classifier_dropout") is None else config["classifier_dropout"],
            "attention_dropout": config.get("attention_probs_dropout_prob", 0.1),
            "layer_norm_eps": config.get("layer_norm_eps", 1e-12),
        }
    except KeyError as error:
        raise CheckpointError(f"the configuration lacks {error}") from None


def stored_bpe(files: Mapping[str, Path], lower: Callable[[], bool]) -> dict[str, Any] | None:
    """The BPE whose ids are the rows of such a model, by the ``files`` beside it; ``lower``: whether it has no upper case."""
    if TOKENIZER in files:
        return {"_name": "hf_tokenizer", "hf_tokenizer_file": TOKENIZER}
    if VOCAB in files and MERGES in files:
        return {"_name": "hf_byte_bpe", "bpe_vocab": VOCAB, "bpe_merges": MERGES}
    if SENTENCEPIECE in files:
        return {"_name": "sentencepiece", "sentencepiece_model": SENTENCEPIECE}
    if VOCABULARY in files:
        return {"_name": "bert", "bpe_vocab_file": VOCABULARY, "bpe_cased": not lower()}
    return None


def xlmr_symbols(model: Path, order: Sequence[int]) -> list[str]:
    """What the rows of XLM-R mean: the pieces of its sentencepiece ``model`` after its three special ones, in their order.

    Raises CheckpointError for a model with other rows.
    """
    encoder = SentencepieceBPE(SentencepieceConfig(sentencepiece_model=str(model)))
    pieces = encoder.symbols[3:]
    if list(order) != list(range(len(order))) or len(pieces) != len(order) - 5:
        raise CheckpointError(f"{model} has {len(pieces)} pieces, which are not the {len(order) - 5} rows of the model")
    return pieces


def lower_case(folder: Path) -> bool:
    path = folder / "tokenizer_config.json"
    return bool(load_json(path).get("do_lower_case", True)) if path.is_file() else True
