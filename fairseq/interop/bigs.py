"""Folders of BiGS (arXiv 2212.10544) in PyTorch and in Flax, whose weights have the same names but for a few rules.

Names in PyTorch are what both are mapped by: ``bigs.`` is the encoder, ``cls.predictions.`` the masked-LM head. Flax calls
the encoder ``s4_bert``, keeps matrices the other way round, and the parameters of a convolution without ``kernel.``.

Legend: V vocabulary, C channels.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq.checkpoint.atomic import write_atomically
from fairseq.errors import CheckpointError, DataNotFoundError
from fairseq.interop import flax_file, vocabulary
from fairseq.interop.bigs_config import bigs_configuration, bigs_file, bigs_settings, warn_of_port
from fairseq.interop.portable import (
    CONFIG,
    TOKENIZER,
    VOCABULARY,
    PortableModel,
    files_beside,
    load_json,
    make_state,
    read_weights,
    save_json,
    write_weights,
)
from fairseq.registry import FORMATS

logger = logging.getLogger(__name__)

FLAX = "flax_model.msgpack"
REST = "rest"  # key of a checkpoint with weights of the source that our model does not have
EMBEDDING = "bigs.embeddings.word_embeddings.weight"
DECODER = "cls.predictions.decoder"
BUFFERS = ("bigs.embeddings.position_ids", f"{DECODER}.bias")  # made anew for PyTorch
OUR_EMBEDDING, OUR_HEAD = "encoder.sentence_encoder.embed_tokens.weight", "encoder.lm_head."
BY_VOCABULARY = (OUR_EMBEDDING, f"{OUR_HEAD}weight", f"{OUR_HEAD}bias")
OUTSIDE = {  # beginning of their name -> of ours
    "bigs.embeddings.word_embeddings.": "encoder.sentence_encoder.embed_tokens.",
    "bigs.embeddings.position_embeddings.": "encoder.sentence_encoder.embed_positions.",
    "bigs.embeddings.token_type_embeddings.": "encoder.sentence_encoder.embed_token_types.",
    "bigs.embeddings.LayerNorm.": "encoder.sentence_encoder.layernorm_embedding.",
    "cls.predictions.transform.dense.": f"{OUR_HEAD}dense.",
    "cls.predictions.transform.LayerNorm.": f"{OUR_HEAD}layer_norm.",
    f"{DECODER}.weight": f"{OUR_HEAD}weight",
    "cls.predictions.bias": f"{OUR_HEAD}bias",
}
INSIDE = {  # within a layer
    "LayerNorm.": "self_attn_layer_norm.",
    "dv.": "self_attn.value_proj.",
    "du_forward.": "self_attn.forward_proj.",
    "du_backward.": "self_attn.backward_proj.",
    "duc_forward.": "self_attn.forward_out_proj.",
    "duc_backward.": "self_attn.backward_out_proj.",
    "dol.": "self_attn.gate_proj.",
    "do.": "self_attn.out_proj.",
    "fs4.kernel.": "self_attn.forward_ssm.",
    "bs4.kernel.": "self_attn.backward_ssm.",
    "fs4.D": "self_attn.forward_ssm.D",
    "bs4.D": "self_attn.backward_ssm.D",
}
# Kind of a headed model, as its class is called -> beginnings of names, theirs and ours.
_POOLER = "bigs.pooler.dense."
_SENTENCE = {
    _POOLER: "classification_heads.sentence_classification_head.dense.",
    "classifier.": "classification_heads.sentence_classification_head.out_proj.",
}
HEADS: dict[str, dict[str, str]] = {
    "SequenceClassification": _SENTENCE,
    "MultipleChoice": _SENTENCE,
    "TokenClassification": {"classifier.": "classification_heads.token_classification_head.out_proj."},
    "QuestionAnswering": {"qa_outputs.": "classification_heads.question_answering_head.out_proj."},
}
MASKED = "MaskedLM"
_LAYER = re.compile(r"bigs\.encoder\.layer\.(\d+)\.(.+)")
_OUR_LAYER = re.compile(r"encoder\.sentence_encoder\.layers\.(\d+)\.(.+)")
_SSM = re.compile(r"(.*/[fb]s4)/(A_re|A_im|C|log_step)")


class _BiGS:
    """``config.json``, the weights, and ``vocab.txt`` or ``tokenizer.json`` if there is one."""

    program = ""

    @classmethod
    def read(cls, folder: Path, special: Mapping[str, int]) -> PortableModel:
        config = load_json(folder / CONFIG)
        settings = bigs_settings(config, cls.program)
        if cls.program == "torch":
            warn_of_port(config)
        theirs = _with_prefix(cls.read_weights(folder))
        if EMBEDDING not in theirs:
            raise CheckpointError(f"the weights lack {EMBEDDING}: they are not those of a BiGS")
        size = len(theirs[EMBEDDING])
        pad = config.get("pad_token_id")
        ids = vocabulary.special_ids(folder, special, size, {} if pad is None else {"pad": pad})
        order = vocabulary.our_order(ids, size)
        kind = _kind(config, theirs)
        headless = "cls.predictions.bias" not in theirs
        weights, rest = from_bigs(theirs, order, kind, not settings["untie_weights_roberta"])
        files = files_beside(folder)
        symbols, bpe = _symbols(folder, order, files)
        state = make_state("bigs_512", settings, weights, symbols, settings["max_positions"], bpe)
        if rest:
            state[REST] = rest
        origin = {"special": ids, "rows": order, "config": config, "kind": kind, "lm_head": not headless}
        return PortableModel(state, symbols, files, origin)

    @classmethod
    def write(cls, model: PortableModel, folder: Path) -> None:
        configuration = bigs_configuration(model.state)
        weights, origin = model.state["model"], model.origin
        order = origin.get("rows") or list(range(len(weights[OUR_EMBEDDING])))
        if not origin:
            logger.warning(
                "rows stay in the order of dict.txt (pad is 1, <mask> the last one): there is no conversion.json beside the "
                "checkpoint, and --special does not say which ids its tokenizer has"
            )
        kind = _our_kind(weights, origin.get("kind"))
        theirs = to_bigs(weights, order, kind, origin.get("lm_head", True))
        theirs |= {key: value for key, value in model.state.get(REST, {}).items() if key not in theirs}
        labels = len(theirs["classifier.weight"]) if "classifier.weight" in theirs else None
        config = bigs_file(configuration, cls.program, len(order), labels, order[1], origin.get("config"))
        if not origin.get("config"):
            config["architectures"] = [f"{'Flax' if cls.program == 'flax' else ''}BiGSFor{kind}"]
        folder.mkdir(parents=True, exist_ok=True)
        cls.write_weights(theirs, folder, not configuration.untie_weights_roberta)
        save_json(config, folder / CONFIG)

    @staticmethod
    def read_weights(folder: Path) -> dict[str, Tensor]:
        """The weights by their names in PyTorch."""
        raise NotImplementedError

    @staticmethod
    def write_weights(theirs: dict[str, Tensor], folder: Path, tied: bool) -> None:
        raise NotImplementedError


@FORMATS.register("bigs-torch")
class TorchFolder(_BiGS):
    """``model.safetensors`` or ``pytorch_model.bin``; blocks have the exact GELU, and are always pre-norm."""

    program = "torch"
    read_weights = staticmethod(read_weights)

    @staticmethod
    def write_weights(theirs: dict[str, Tensor], folder: Path, tied: bool) -> None:
        positions = theirs.get("bigs.embeddings.position_embeddings.weight")
        if positions is not None:
            theirs["bigs.embeddings.position_ids"] = torch.arange(len(positions))[None]
        if "cls.predictions.bias" in theirs:
            theirs[f"{DECODER}.bias"] = theirs["cls.predictions.bias"]
            if tied:
                theirs[f"{DECODER}.weight"] = theirs[EMBEDDING]
        write_weights(theirs, folder)


@FORMATS.register("bigs-flax")
class FlaxFolder(_BiGS):
    """``flax_model.msgpack``; blocks have the tanh form of GELU, as the published models."""

    program = "flax"

    @staticmethod
    def read_weights(folder: Path) -> dict[str, Tensor]:
        try:
            data = (folder / FLAX).read_bytes()
        except FileNotFoundError:
            raise DataNotFoundError(f"there is no {FLAX} in {folder}; give the folder of a model") from None
        return dict(_from_flax(path, value) for path, value in flax_file.decode_arrays(data).items())

    @staticmethod
    def write_weights(theirs: dict[str, Tensor], folder: Path, tied: bool) -> None:
        data = flax_file.encode_arrays(dict(_to_flax(key, value) for key, value in theirs.items()))
        write_atomically(folder / FLAX, lambda file: file.write(data))


def _from_flax(path: str, value: Tensor) -> tuple[str, Tensor]:
    path = _SSM.sub(r"\1/kernel/\2", path.removeprefix("params/"))
    *parents, leaf = path.split("/")
    if leaf == "kernel":
        leaf, value = "weight", value.t().contiguous()
    elif leaf in ("embedding", "scale"):
        leaf = "weight"
    return ".".join(["bigs" if name == "s4_bert" else name for name in parents] + [leaf]), value


def _to_flax(name: str, value: Tensor) -> tuple[str, Tensor]:
    *parents, leaf = name.split(".")
    if leaf == "weight":
        table = parents[-1].endswith("embeddings")
        leaf = "embedding" if table else "scale" if parents[-1] == "LayerNorm" else "kernel"
        value = value.t() if leaf == "kernel" else value
    elif parents[-1] == "kernel":
        del parents[-1]
    return "/".join(["s4_bert" if parent == "bigs" else parent for parent in parents] + [leaf]), value


def _with_prefix(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """``theirs`` by the names of a model with a head: those of the encoder alone have no prefix."""
    bare = ("embeddings.", "encoder.", "pooler.")
    return {f"bigs.{key}" if key.startswith(bare) else key: value for key, value in theirs.items()}


def _kind(config: Mapping[str, Any], theirs: Mapping[str, Tensor]) -> str:
    """The kind of model: what its class is called, else what its weights look like. Raises CheckpointError."""
    classes = config.get("architectures") or [""]
    if not isinstance(classes, list) or not isinstance(classes[0], str):
        raise CheckpointError(f"architectures is {classes!r:.60} in config.json, but must be a list of names")
    name = classes[0].rpartition("BiGSFor")[2]
    if name not in HEADS:
        name = "QuestionAnswering" if "qa_outputs.weight" in theirs else MASKED
        if "classifier.weight" in theirs:
            name = "SequenceClassification" if f"{_POOLER}weight" in theirs else "TokenClassification"
    lacks = [start for start in HEADS.get(name, {}) if f"{start}weight" not in theirs]
    if lacks:
        raise CheckpointError(f"the weights lack {lacks[0]}weight, which those of BiGSFor{name} have")
    return name


def _our_kind(weights: Mapping[str, Tensor], before: str | None) -> str:
    """The kind of model that has our ``weights``, the one ``before`` if it may be. Raises CheckpointError."""
    heads = {key.split(".")[1] for key in weights if key.startswith("classification_heads.")}
    if not heads:
        return MASKED
    kinds = [kind for kind, names in HEADS.items() if {name.split(".")[1] for name in names.values()} == heads]
    if not kinds:
        raise CheckpointError(
            f"a BiGS cannot be this model: it has the heads {', '.join(sorted(heads))}, but only one of "
            "sentence_classification_head, token_classification_head and question_answering_head can be converted"
        )
    return before if before in kinds else kinds[0]


def _symbols(folder: Path, order: Sequence[int], files: Mapping[str, Path]) -> tuple[list[str], dict[str, Any] | None]:
    """What ``dict.txt`` lists, and the settings of the BPE: word pieces, or ids for ``tokenizer.json`` or nothing."""
    if VOCABULARY not in files:
        bpe = {"_name": "hf_tokenizer", "hf_tokenizer_file": TOKENIZER} if TOKENIZER in files else None
        return vocabulary.symbols(order), bpe
    try:
        pieces = vocabulary.vocabulary_lines(folder / VOCABULARY)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{VOCABULARY} is not UTF-8 text: {error.reason}") from None
    if len(pieces) > len(order):
        raise CheckpointError(f"{VOCABULARY} has {len(pieces)} lines, but the model only {len(order)} embeddings")
    pieces += [f"madeupword{row:04d}" for row in range(len(pieces), len(order))]
    listed = [pieces[row] for row in order[4:-1]]
    wrong = [piece for piece in listed if not piece or piece.split() != [piece]]
    if wrong or len({*listed, "<s>", "<pad>", "</s>", "<unk>", "<mask>"}) != len(listed) + 5:
        raise CheckpointError(f"{VOCABULARY} has an empty line, a piece with a space, or one piece twice")
    path = folder / "tokenizer_config.json"
    lower = load_json(path).get("do_lower_case", True) if path.is_file() else True
    return listed, {"_name": "bert", "bpe_vocab_file": VOCABULARY, "bpe_cased": not lower}


def from_bigs(
    theirs: Mapping[str, Tensor], order: list[int], kind: str, tied: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """``theirs`` by our names, rows of the vocabulary in our ``order``; and those that we have no place for.

    Raises CheckpointError for unknown names.
    """
    weights: dict[str, Tensor] = {"encoder.sentence_encoder.version": torch.tensor([3.0])}
    rest: dict[str, Tensor] = {}
    for key, value in theirs.items():
        if key in BUFFERS or (tied and key == f"{DECODER}.weight"):
            continue
        layer = _LAYER.fullmatch(key)
        table, within = (INSIDE, layer.group(2)) if layer else ({**OUTSIDE, **HEADS.get(kind, {})}, key)
        start = next((start for start in table if within.startswith(start)), None)
        if start is not None:
            prefix = f"encoder.sentence_encoder.layers.{layer.group(1)}." if layer else ""
            name = prefix + table[start] + within.removeprefix(start)
            weights[name] = vocabulary.to_ours(value, order) if name in BY_VOCABULARY else value
        elif key.startswith((_POOLER, "cls.seq_relationship.")):
            rest[key] = value
        else:
            raise CheckpointError(f"no such weight is known of a BiGS: {key}")
    if f"{OUR_HEAD}bias" not in weights:
        logger.warning("the weights have no masked-LM head: the model gets an untrained one")
        weights |= _new_head(weights[OUR_EMBEDDING])
    if tied:
        weights[f"{OUR_HEAD}weight"] = weights[OUR_EMBEDDING]
    return weights, rest


def _new_head(embeddings: Tensor) -> dict[str, Tensor]:
    """The weights of an untrained masked-LM head on ``embeddings`` (V, C)."""
    rows, width = embeddings.shape
    dense = torch.empty(width, width).normal_(0.0, 0.02, generator=torch.Generator().manual_seed(1))
    values = {
        "dense.weight": dense,
        "dense.bias": torch.zeros(width),
        "layer_norm.weight": torch.ones(width),
        "layer_norm.bias": torch.zeros(width),
        "weight": embeddings.clone(),
        "bias": torch.zeros(rows),
    }
    return {OUR_HEAD + name: value.to(embeddings.dtype) for name, value in values.items()}


def to_bigs(ours: Mapping[str, Tensor], order: Sequence[int], kind: str, lm_head: bool) -> dict[str, Tensor]:
    """The inverse of `from_bigs`, without what is there twice in tied models."""
    outside = {our: their for their, our in ({**OUTSIDE, **HEADS.get(kind, {})}).items()}
    inside = {our: their for their, our in INSIDE.items()}
    inside = dict(sorted(inside.items(), key=lambda item: -len(item[0])))  # D before the others of a convolution
    tied = torch.equal(ours[OUR_EMBEDDING], ours[f"{OUR_HEAD}weight"])
    weights: dict[str, Tensor] = {}
    for key, value in ours.items():
        left_out = not lm_head and key.startswith(OUR_HEAD)
        if key.endswith(".version") or left_out or (tied and key == f"{OUR_HEAD}weight"):
            continue
        layer = _OUR_LAYER.fullmatch(key)
        table, within = (inside, layer.group(2)) if layer else (outside, key)
        start = next((start for start in table if within.startswith(start)), None)
        if start is None:
            logger.warning("a BiGS has no place for %s, which is left out", key)
            continue
        prefix = f"bigs.encoder.layer.{layer.group(1)}." if layer else ""
        name = prefix + table[start] + within.removeprefix(start)
        weights[name] = vocabulary.to_theirs(value, list(order)) if key in BY_VOCABULARY else value
    return weights
