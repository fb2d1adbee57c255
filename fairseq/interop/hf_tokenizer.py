"""The BPE and the dictionary of a model as one ``tokenizer.json``, whose ids are the rows of the model.

Texts come out as ``fairseq.models.roberta.RobertaHubInterface.encode`` has them: ``<s> a </s>``, and for pairs
``<s> a </s> </s> b </s>``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from fairseq.data.encoders.base import build_bpe
from fairseq.dataclass.build import build_config
from fairseq.errors import DataError, FairseqError
from fairseq.interop.portable import TOKENIZER, TOKENIZER_CONFIG, PortableModel, save_json
from fairseq.interop.vocabulary import SPECIAL, special_ids

logger = logging.getLogger(__name__)

OURS = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
ROLES = {"cls": ("bos", "cls"), "sep": ("eos", "sep"), "pad": ("pad",), "unk": ("unk",), "mask": ("mask",)}


def write_tokenizer(model: PortableModel, size: int, longest: int, folder: Path, types: bool = False) -> bool:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` for a model with ``size`` rows; whether that could be done.

    ``types``: the second text of a pair has token type 1. A BPE that cannot be written is warned about.
    """
    try:
        tokenizer, names = _tokenizer(model, size)
    except FairseqError as error:
        logger.warning("no tokenizer was written: %s", error)
        return False
    _frame(tokenizer, names, types)
    tokenizer.save(str(folder / TOKENIZER))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"],
    }
    if getattr(tokenizer.pre_tokenizer, "add_prefix_space", False):
        config["add_prefix_space"] = True  # some releases set it to False otherwise
    config |= {f"{role}_token": names[name] for name in SPECIAL for role in ROLES[name]}
    if longest:
        config["model_max_length"] = longest
    save_json(config, folder / TOKENIZER_CONFIG)
    return True


def _tokenizer(model: PortableModel, size: int) -> tuple[Tokenizer, dict[str, str]]:
    """Without special tokens around texts, and what the special tokens are called. Raises DataError."""
    if model.symbols is None:
        raise DataError("there is no dict.txt beside the model, which says what its rows mean")
    rows = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": len(model.symbols) + 4}
    rows = {symbol: row for row, symbol in enumerate(model.symbols, 4)} | rows
    settings = (model.state.get("cfg") or {}).get("bpe")
    name = settings.get("_name") if isinstance(settings, Mapping) else settings
    makers = {"gpt2": _byte_level, "hf_byte_bpe": _byte_level, "bert": _word_pieces, "sentencepiece": _sentencepiece}
    if name is None:
        return _words(rows), dict(OURS)
    if name != "hf_tokenizer" and name not in makers:
        raise DataError(f"the model has the BPE {name}, which the library tokenizers cannot express")
    config = _found_files(dict(settings or {}), model)
    encoder = build_bpe(build_config({"bpe": config}).bpe)
    if name == "hf_tokenizer":
        return _renumbered(Path(config["hf_tokenizer_file"]), encoder, rows, size)
    return makers[name](encoder, rows), dict(OURS)


def _found_files(settings: dict[str, Any], model: PortableModel) -> dict[str, Any]:
    """The settings of the BPE, with files that lie beside the model named by their paths."""
    for key, value in settings.items():
        beside = model.folder / Path(value).name if model.folder and isinstance(value, str) else None
        if beside is not None and beside.is_file() and not (Path(value).is_absolute() and Path(value).is_file()):
            settings[key] = str(beside)
    return settings


def _vocabulary(pieces: Mapping[str, str], rows: Mapping[str, int]) -> dict[str, int]:
    """Piece -> row, for the dictionary symbol of each piece. Raises DataError."""
    missing = [piece for piece, symbol in pieces.items() if symbol not in rows]
    if missing:
        raise DataError(
            f"{len(missing)} of the BPE's {len(pieces)} pieces are not in dict.txt, {missing[0]!r} for one: they are <unk> here, "
            "and the library tokenizers cannot say that"
        )
    found = {piece: rows[symbol] for piece, symbol in pieces.items()}
    taken = set(found.values())
    return found | {symbol: row for symbol, row in rows.items() if row not in taken and symbol not in found}


def _words(rows: Mapping[str, int]) -> Tokenizer:
    """Without a BPE symbols are what stands between spaces."""
    tokenizer = Tokenizer(models.WordLevel(vocab=dict(rows), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def _byte_level(encoder: Any, rows: Mapping[str, int]) -> Tokenizer:
    if hasattr(encoder.bpe, "bpe_merges"):
        pieces, merges, prefix = encoder.bpe.encoder, encoder.bpe.bpe_merges, False
    else:
        stored = json.loads(encoder.bpe._tokenizer.to_str())
        pieces = stored["model"]["vocab"]
        merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in stored["model"]["merges"]]
        prefix = bool(encoder.bpe._parameters.get("add_prefix_space"))
    vocabulary = _vocabulary({piece: str(idx) for piece, idx in pieces.items()}, rows)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _word_pieces(encoder: Any, rows: Mapping[str, int]) -> Tokenizer:
    stored = json.loads(encoder.bpe._tokenizer.to_str())
    pieces = {piece: piece for piece in stored["model"]["vocab"] if piece not in ("[CLS]", "[SEP]", "[PAD]", "[MASK]")}
    unknown = pieces.pop("[UNK]", None)
    vocabulary = _vocabulary(pieces, rows)
    vocabulary["[UNK]" if unknown else "<unk>"] = rows.get("[UNK]", rows["<unk>"])
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]" if unknown else "<unk>"))
    tokenizer.normalizer = encoder.bpe._tokenizer.normalizer
    tokenizer.pre_tokenizer = encoder.bpe._tokenizer.pre_tokenizer
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _sentencepiece(encoder: Any, rows: Mapping[str, int]) -> Tokenizer:
    """Pieces with their scores and the model's own normalization. Characters without a piece are ``<unk>``."""
    try:
        from sentencepiece import sentencepiece_model_pb2  # wants protobuf
    except (ImportError, TypeError) as error:
        raise DataError(f"sentencepiece models are read with protobuf: pip install fairseq[hf] ({error})") from None
    messages: Any = sentencepiece_model_pb2
    proto = messages.ModelProto.FromString(encoder.sp.serialized_model_proto())
    if encoder.albert or proto.trainer_spec.model_type != 1:
        raise DataError("only unigram models of sentencepiece, without --sentencepiece-albert, can be written")
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type in (1, 4)}
    _vocabulary({piece: piece for piece in scores}, rows)
    pieces: list[tuple[str, float]] = [("", 0.0)] * len(rows)
    for symbol, row in rows.items():
        pieces[row] = (symbol, scores.get(symbol, 0.0 if row < 4 else min(scores.values(), default=0.0) - 100.0))
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=rows["<unk>"], byte_fallback=False))
    charsmap = proto.normalizer_spec.precompiled_charsmap
    steps: list[Any] = [normalizers.Precompiled(charsmap)] if charsmap else []
    if proto.normalizer_spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    scheme = "always" if proto.normalizer_spec.add_dummy_prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme=scheme)
    return tokenizer


def _renumbered(path: Path, encoder: Any, rows: Mapping[str, int], size: int) -> tuple[Tokenizer, dict[str, str]]:
    """``tokenizer.json`` with our rows for its ids; its special tokens keep their names."""
    by_id = {idx: piece for piece, idx in encoder.bpe.get_vocab(with_added_tokens=True).items()}
    special = special_ids(path.parent, {}, max(size, len(by_id)))
    ours = {str(idx): idx for idx in by_id}
    new = {idx: rows[symbol] for symbol, idx in ours.items() if symbol in rows}
    new |= {special[name]: rows[OURS[name]] for name in SPECIAL}
    missing = sorted(by_id.keys() - new.keys())
    if missing:
        raise DataError(f"{len(missing)} ids of {path.name} are not in dict.txt, {missing[0]} for one")
    stored = json.loads(encoder.bpe.to_str())
    vocabulary = stored["model"]["vocab"]
    if isinstance(vocabulary, dict):
        stored["model"]["vocab"] = {piece: new[idx] for piece, idx in vocabulary.items()}
    else:
        order = sorted(range(len(vocabulary)), key=new.__getitem__)
        if [new[idx] for idx in order] != list(range(len(order))):
            raise DataError(f"{path.name} leaves rows of the model without a piece, which a unigram model cannot")
        stored["model"]["vocab"] = [vocabulary[idx] for idx in order]
        if stored["model"].get("unk_id") is not None:
            stored["model"]["unk_id"] = new[stored["model"]["unk_id"]]
    for token in stored.get("added_tokens") or ():
        token["id"] = new[token["id"]]
    stored["added_tokens"] = sorted(stored.get("added_tokens") or (), key=lambda token: token["id"])
    stored["post_processor"] = None
    names = {name: by_id[special[name]] for name in SPECIAL}
    return Tokenizer.from_str(json.dumps(stored)), names


def _frame(tokenizer: Tokenizer, names: Mapping[str, str], types: bool) -> None:
    """Special tokens in texts and around them."""
    for name in SPECIAL:
        tokenizer.add_special_tokens([AddedToken(names[name], special=True, normalized=False, lstrip=name == "mask")])
    first, last = names["cls"], names["sep"]
    second = 1 if types else 0
    tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} {last} $B:{second} {last}:{second}",
        special_tokens=_ids(tokenizer, (first, last)),
    )


def _ids(tokenizer: Tokenizer, tokens: Sequence[str]) -> list[tuple[str, int]]:
    found = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(tokens)]
    return [(token, idx) for token, idx in found if idx is not None]
