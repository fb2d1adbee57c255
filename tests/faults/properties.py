"""Generated inputs, by `hypothesis`: whatever a file holds, it is read, or refused with one sentence.

    python -m tests.faults.properties --count 300 [--kinds checkpoint ...]     # so many of each kind

Other than `tests.faults.fuzz`, which damages good files, this makes up files from the parts of their formats. The same
inputs come every time. What hangs or dies by a signal ends this process.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.kinds import Kind
from tests.faults.worker import attempt, limit_memory

Strategy = st.SearchStrategy[Any]


@dataclass(frozen=True)
class Property:
    """``write`` puts a generated value into files of the folder, ``read`` reads these as a command does."""

    values: Strategy
    write: Callable[[Path, Any], None]
    read: Callable[[Path], str]


# -- values -----------------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**64 - 1, -(2**63), 10**30]),
    st.floats(),
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.text(st.characters(categories=["Cs", "Cc", "Zs", "Ll"]), max_size=4),
    st.sampled_from(["", " ", "???", "${a.b}", "nan", "1e400", "<mask>", "<pad>", "\ud800", "\x00", "x" * 3000]),
)
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
NESTED = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=12
)


def _odd(draw: Any) -> bool:
    """Once in a while; a number in the middle, since the ends of a range come often."""
    return draw(st.integers(0, 30)) == 13


@st.composite
def maybe(draw: Any, value: Any, odd: Strategy = NESTED) -> Any:
    """``value`` (a strategy, or the value itself), and something odd once in a while."""
    if _odd(draw):
        return draw(odd)
    return draw(value) if isinstance(value, st.SearchStrategy) else value


@st.composite
def section(draw: Any, odd: Strategy = NESTED, **known: Any) -> dict[str, Any]:
    """A dictionary with the ``known`` keys and values, now and then with fewer, others, or something odd in it."""
    found = {key: draw(maybe(value, odd)) for key, value in known.items() if not _odd(draw)}
    if _odd(draw):
        found.update(draw(st.dictionaries(TEXTS, odd, max_size=2)))
    return found


def utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def lines(row: Strategy, first: str = "", unique: Callable[[str], object] | None = None) -> Strategy:
    """The bytes of a text file with such rows, after the row ``first``."""
    mark = maybe(b"", st.sampled_from([b"\xef\xbb\xbf", b"\xff\xfe", b"\x00"]))
    end = maybe("\n", st.sampled_from(["\r\n", "\r", "\n\n", "\u2028"]))
    rows = maybe(st.lists(row, max_size=12, unique_by=unique), st.lists(row, max_size=3))
    return st.builds(
        lambda rows, end, mark: mark + utf8(end.join([*filter(None, [first]), *rows, ""])), rows, end, mark
    )


def in_file(name: str) -> Callable[[Path, Any], None]:
    return lambda folder, value: None if (folder / name).write_bytes(value) else None


# -- dict.txt ---------------------------------------------------------------------------------------------------------

SYMBOLS = st.text("abcdef", min_size=1, max_size=3) | st.sampled_from(["the", "madeupword0000", "<mask>"])
ROWS = st.builds(
    lambda *parts: "".join(parts),
    maybe(SYMBOLS, st.sampled_from(["<s>", "</s>", "<unk>", "<pad>"]) | TEXTS),
    maybe(" ", st.sampled_from(["", "\t", "  "])),
    maybe(st.integers(0, 99).map(str), PLAIN.map(str)),
    maybe("", st.sampled_from([" #fairseq:overwrite", " #fairseq:", " x", "\t"])),
)


def read_dictionary(folder: Path) -> str:
    from fairseq.data.dictionary import Dictionary

    found = Dictionary.load(str(folder / "dict.txt"))
    found.save(str(folder / "again.txt"))
    again = Dictionary.load(str(folder / "again.txt"))
    assert again.symbols == found.symbols and again.count == found.count
    return repr(found.symbols)


# -- data -------------------------------------------------------------------------------------------------------------


@st.composite
def data_files(draw: Any) -> tuple[bytes, bytes]:
    """The bytes of ``.idx`` and ``.bin``, each number of the index right most of the time."""
    sizes = draw(st.lists(maybe(st.integers(1, 6), st.integers(-(2**31), 2**31 - 1)), max_size=6))
    code = draw(maybe(st.sampled_from([8, 4, 5, 1, 9]), st.integers(0, 255)))
    width = {1: 1, 2: 1, 3: 2, 8: 2, 4: 4, 9: 4}.get(code, 8)
    starts = [int(start) * width for start in np.cumsum([0, *sizes])]

    def right(value: int, low: int = 0, high: int = 2**64 - 1) -> int:
        value = min(max(value, low), high)
        return draw(
            st.one_of(*[st.just(value)] * 9, st.integers(max(low, value - 2), value + 2), st.integers(low, high))
        )

    if draw(st.integers(0, 3)):
        magic = draw(maybe(b"MMIDIDX\x00\x00", st.sampled_from([b"HUFFIDX\x00\x00", bytes(9), b"MMIDIDX\x00\x01"])))
        index = magic + struct.pack("<QBQ", right(1), code, right(len(sizes)))
        index += struct.pack(f"<{len(sizes)}i", *sizes)
        index += struct.pack(f"<{len(sizes)}q", *(right(start, -(2**63), 2**63 - 1) for start in starts[:-1]))
    else:
        header = (right(1), right(code), right(width), right(len(sizes)), right(len(sizes)))
        numbers = [*range(len(sizes) + 1), *(start // width for start in starts), *sizes]
        index = b"TNTIDX\x00\x00" + struct.pack("<5Q", *header)
        index += struct.pack(f"<{len(numbers)}q", *(right(number, -(2**63), 2**63 - 1) for number in numbers))
    cut = draw(maybe(0, st.sampled_from([1, 4, 8, 40])))
    length = right(min(max(starts[-1], 0), 4000), 0, 4000)
    return index[: len(index) - cut], bytes(number % 7 for number in range(length))


def write_data(folder: Path, value: tuple[bytes, bytes]) -> None:
    for suffix, content in zip((".idx", ".bin"), value, strict=True):
        (folder / f"train{suffix}").write_bytes(content)


def read_data(folder: Path) -> str:
    from fairseq.data.indexed_dataset import load_indexed_dataset

    dataset: Any = load_indexed_dataset(str(folder / "train"))
    return repr([dataset[number].tolist() for number in range(len(dataset))])


# -- settings ---------------------------------------------------------------------------------------------------------

FRACTION, COUNT = st.floats(0, 0.9), st.integers(1, 50)
SETTINGS = section(
    task=section(_name="masked_lm", data="data-bin", mask_prob=FRACTION, seed=COUNT, tokens_per_sample=COUNT),
    criterion="masked_lm",
    model=section(
        _name="roberta", encoder_layers=COUNT, dropout=FRACTION, token_mixer=st.sampled_from(["bigs", "conv_attention"])
    ),
    optimizer=section(_name="adam", adam_betas="(0.9, 0.98)", adam_eps=1e-6, weight_decay=FRACTION),
    lr_scheduler=section(_name="polynomial_decay", warmup_updates=COUNT, total_num_update=COUNT),
    optimization=section(lr=[0.1], max_update=COUNT, update_freq=st.lists(COUNT, min_size=1), clip_norm=FRACTION),
    dataset=section(batch_size=COUNT, num_workers=0, train_subset="train", valid_subset="valid,valid1"),
    checkpoint=section(save_dir="c", save_interval=COUNT, keep_last_epochs=COUNT, restore_file="checkpoint_last.pt"),
    common=section(seed=COUNT, log_format=st.sampled_from(["json", "none"]), bf16=st.booleans()),
    bpe=st.none() | section(_name="gpt2"),
)
COMPOSED = st.builds(
    lambda settings, more: {**settings, **more},
    SETTINGS,
    section(defaults=["_self_"], hydra=section(job=section(chdir=st.booleans(), name="x"), run=section(dir="out"))),
)
YAML_TEXTS = st.lists(st.sampled_from(list("abc:-[]{}&*!|>'\"#%@`,?0123 \n\t~")), max_size=40).map("".join)


def write_yaml(folder: Path, value: Any) -> None:
    content = value if isinstance(value, str) else yaml.safe_dump(value, allow_unicode=True)
    (folder / "run.yaml").write_bytes(utf8(content))


def read_settings(folder: Path) -> str:
    """Composed and completed, as far as before a training."""
    from omegaconf import OmegaConf

    from fairseq.cli import hydra_train
    from fairseq.cli.common import run_command

    found = []

    def job(cfg: Any) -> None:
        found.append(OmegaConf.to_yaml(hydra_train.complete(cfg, str(folder))))

    os.chdir(folder)
    words = ["--config-dir", str(folder), "--config-name", "run"]
    run_command("fairseq-hydra-train", lambda: hydra_train.compose_and_run(words, job))
    return "\n".join(found)


# -- checkpoints ------------------------------------------------------------------------------------------------------

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8])
SHAPES = st.lists(st.integers(0, 4), max_size=3)
TENSORS = st.builds(lambda shape, dtype: torch.ones(shape, dtype=dtype), SHAPES, DTYPES)
ODD = st.one_of(
    NESTED,
    TENSORS,
    st.builds(lambda shape: torch.empty(shape, device="meta"), SHAPES),
    st.builds(lambda count: torch.ones(1).expand(count), st.integers(2, 10**6)),
    st.builds(np.float32, st.floats(width=32)),
    st.builds(lambda values: argparse.Namespace(**values), st.dictionaries(st.sampled_from("abc"), PLAIN, max_size=3)),
    st.just({1, 2}) | st.just((1, 2)) | st.just(b"bytes"),
)
WEIGHTS = maybe(st.dictionaries(TEXTS, maybe(TENSORS, ODD), max_size=4), ODD)
POSITION = section(ODD, version=2, epoch=COUNT, iterations_in_epoch=COUNT, shuffle=True)
ENTRY = section(
    ODD, criterion_name="MaskedLmLoss", optimizer_name="FairseqAdam", lr_scheduler_state={}, num_updates=COUNT
)
MOMENTS = section(ODD, step=COUNT, exp_avg=TENSORS, exp_avg_sq=TENSORS)
GROUP = section(ODD, params=st.lists(COUNT), lr=FRACTION, betas=(0.9, 0.98), eps=FRACTION, weight_decay=FRACTION)
METER = st.tuples(
    maybe(COUNT, ODD), maybe("loss", ODD), maybe("AverageMeter", ODD), section(ODD, val=1.0, sum=1.0, count=1)
)
CHECKPOINTS = section(
    ODD,
    model=WEIGHTS,
    args=st.none(),
    cfg=SETTINGS,
    criterion=st.none(),
    optimizer_history=st.lists(ENTRY, min_size=1, max_size=2),
    last_optimizer_state=section(
        ODD, state=st.dictionaries(COUNT, MOMENTS, max_size=2), param_groups=st.lists(GROUP, max_size=2)
    ),
    task_state=section(ODD),
    extra_state=section(
        ODD,
        train_iterator=POSITION,
        val_loss=FRACTION,
        best=FRACTION,
        previous_training_time=FRACTION,
        metrics=section(ODD, default=st.lists(METER, max_size=2)),
        ema=WEIGHTS,
    ),
)


def write_checkpoint(folder: Path, value: tuple[Any, bool]) -> None:
    state, zipped = value
    try:
        torch.save(state, folder / "model.pt", _use_new_zipfile_serialization=zipped)
    except (UnicodeEncodeError, ValueError):  # half of a surrogate pair, which pickles of today cannot hold
        torch.save({"model": {}}, folder / "model.pt")


def read_checkpoint(folder: Path) -> str:
    from fairseq.checkpoint.reader import read

    return repr(sorted(map(str, read(folder / "model.pt"))))


# -- files of tokenizers ----------------------------------------------------------------------------------------------

TEXT = "the man, isn't he? \u00e9 \U0001f600"
USUAL = st.sampled_from(["t", "h", "e", "m", "a", "n", "th", "the", "\u0120", "\u0120m", "an", "##n"])
PIECES = maybe(USUAL, TEXTS)
SPECIAL = ["[UNK]", "<unk>", "[CLS]", "[SEP]", "[MASK]"]


@st.composite
def vocabularies(draw: Any) -> dict[str, Any]:
    """Pieces with ids from 0; or other ids now and then."""
    pieces = draw(st.lists(PIECES, max_size=8, unique=True))
    return {piece: draw(maybe(idx, NUMBERS)) for idx, piece in enumerate([*SPECIAL, *pieces])}


@st.composite
def byte_vocabularies(draw: Any) -> dict[str, Any]:
    """All 256 bytes as GPT-2 writes them, then merged pieces."""
    from fairseq.data.encoders.gpt2_bpe import bytes_to_unicode

    usual = dict.fromkeys([*bytes_to_unicode().values(), "th", "the", "\u0120m", "an"])
    found = {piece: idx for idx, piece in enumerate(usual)}
    for piece in draw(st.lists(st.sampled_from(list(usual)), max_size=2)):
        found[draw(PIECES)] = draw(maybe(found.pop(piece, 0), NUMBERS))
    return found


BYTES = byte_vocabularies() | vocabularies()
MERGES = st.sampled_from(["t h", "th e", "\u0120 m", "a n"]) | st.builds(
    lambda a, gap, b: a + gap + b, PIECES, maybe(" ", st.sampled_from(["", "  "])), PIECES
)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def write_gpt2(folder: Path, value: tuple[Any, bytes]) -> None:
    (folder / "encoder.json").write_bytes(_json(value[0]))
    (folder / "vocab.bpe").write_bytes(value[1])


def _encoded(name: str, **files: Path) -> str:
    from fairseq.registry import BPES

    encoder: Any = BPES.get(name)(argparse.Namespace(**{key: str(path) for key, path in files.items()}))
    return repr((encoder.encode(TEXT), encoder.decode(encoder.encode(TEXT))))


BPE = section(
    type="BPE",
    vocab=vocabularies(),
    merges=st.lists(MERGES, max_size=3),
    unk_token=st.none(),
    byte_fallback=st.booleans(),
)
WORD_PIECE = section(
    type="WordPiece",
    vocab=vocabularies(),
    unk_token="[UNK]",
    continuing_subword_prefix="##",
    max_input_chars_per_word=100,
)
UNIGRAM = section(
    type="Unigram",
    unk_id=maybe(st.just(0), NUMBERS),
    vocab=st.lists(st.tuples(PIECES, maybe(st.floats(-9, 0), NUMBERS)), max_size=5).map(
        lambda rows: [("<unk>", 0.0), *rows]
    ),
)
WORD_LEVEL = section(type="WordLevel", vocab=vocabularies(), unk_token="[UNK]")
PATTERN = st.fixed_dictionaries({"Regex": maybe("a+", st.sampled_from(["(a+)+$", "(", "\\p{L}", ""]))})
NORMALIZER = section(type=st.sampled_from(["Lowercase", "NFC", "StripAccents"])) | section(
    type="Replace", pattern=PATTERN, content=maybe("b", TEXTS)
)
CUTTER = (
    section(type=st.sampled_from(["Whitespace", "BertPreTokenizer"]))
    | section(type="Split", pattern=PATTERN, behavior=maybe("Isolated", TEXTS), invert=st.booleans())
    | section(type="ByteLevel", add_prefix_space=st.booleans(), trim_offsets=st.booleans(), use_regex=st.booleans())
)
ADDED = section(
    id=COUNT, content=maybe("<x>", TEXTS), single_word=st.booleans(), lstrip=st.booleans(), rstrip=st.booleans(),
    normalized=st.booleans(), special=st.booleans(),
)  # fmt: skip
TOKENIZER = section(
    version="1.0",
    truncation=st.none(),
    padding=st.none(),
    added_tokens=st.lists(ADDED, max_size=2),
    normalizer=st.none() | NORMALIZER,
    pre_tokenizer=st.none() | CUTTER,
    post_processor=st.none(),
    decoder=st.none(),
    model=st.one_of(BPE, WORD_PIECE, UNIGRAM, WORD_LEVEL),
)


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    low, high = value & 127, value >> 7
    return bytes([low | 128]) + _varint(high) if high else bytes([low])


@st.composite
def sentencepiece_models(draw: Any) -> bytes:
    """Pieces with scores and kinds, then settings of the trainer and the normalizer."""
    content = b""
    pieces = [
        ("<unk>", 2),
        ("<s>", 3),
        ("</s>", 3),
        *((piece, 1) for piece in draw(st.lists(PIECES, max_size=8, unique=True))),
    ]
    for piece, usual in pieces:
        score, kind = (
            draw(maybe(st.floats(-9, 0, width=32), st.floats(width=32))),
            draw(maybe(usual, st.integers(0, 300))),
        )
        content += _field(1, _field(1, utf8(piece)) + b"\x15" + struct.pack("<f", score) + b"\x18" + _varint(kind))
    if draw(st.booleans()):
        content += _field(2, b"\x18" + _varint(draw(st.integers(0, 5))))  # model_type
    if draw(st.booleans()):
        content += _field(
            3, _field(1, b"nmt_nfkc") + draw(maybe(b"", st.binary(max_size=40).map(lambda map_: _field(2, map_))))
        )
    return content + draw(maybe(b"", st.binary(max_size=6)))


PROPERTIES = {
    "dict.txt": Property(lines(ROWS, unique=lambda row: row.split(" ")[0]), in_file("dict.txt"), read_dictionary),
    "data": Property(data_files(), write_data, read_data),
    "yaml": Property(maybe(COMPOSED, NESTED | YAML_TEXTS), write_yaml, read_settings),
    "checkpoint": Property(
        st.tuples(maybe(CHECKPOINTS, ODD), maybe(True, st.just(False))), write_checkpoint, read_checkpoint
    ),
    "gpt2": Property(
        st.tuples(maybe(BYTES), lines(MERGES, "#version: 0.2\nt h\nth e\n\u0120 m\na n")),
        write_gpt2,
        lambda folder: _encoded("gpt2", gpt2_encoder_json=folder / "encoder.json", gpt2_vocab_bpe=folder / "vocab.bpe"),
    ),
    "hf_byte_bpe": Property(
        st.tuples(maybe(BYTES), lines(MERGES, "#version: 0.2\nt h\nth e\n\u0120 m\na n")),
        write_gpt2,
        lambda folder: _encoded("hf_byte_bpe", bpe_vocab=folder / "encoder.json", bpe_merges=folder / "vocab.bpe"),
    ),
    "tokenizer.json": Property(
        maybe(TOKENIZER).map(_json),
        in_file("tokenizer.json"),
        lambda folder: _encoded("hf_tokenizer", hf_tokenizer_file=folder / "tokenizer.json"),
    ),
    "vocab.txt": Property(
        lines(PIECES, "\n".join(SPECIAL)),
        in_file("vocab.txt"),
        lambda folder: _encoded("bert", bpe_vocab_file=folder / "vocab.txt"),
    ),
    "sentencepiece": Property(
        sentencepiece_models(),
        in_file("m.model"),
        lambda folder: _encoded("sentencepiece", sentencepiece_model=folder / "m.model"),
    ),
}


def check(name: str, count: int) -> Counter[str]:
    """How many of ``count`` inputs are read and refused; raises AssertionError with the smallest one that is neither."""
    counts: Counter[str] = Counter()
    found = PROPERTIES[name]
    kind = Kind(lambda folder: None, {}, found.read)

    @settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(found.values)
    def holds(value: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            found.write(Path(folder), value)
            outcome, said = attempt(kind, Path(folder), None)
        assert outcome in ("silent", "sentence"), (outcome, said)
        counts["read" if outcome == "silent" else "refused"] += 1

    here = os.getcwd()
    try:
        holds()
    finally:
        os.chdir(here)
    return counts


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.properties", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300, help="generated inputs of each kind (%(default)s)")
    parser.add_argument("--kinds", nargs="*", choices=[*PROPERTIES, []], default=list(PROPERTIES), metavar="KIND")
    args = parser.parse_args(argv)
    logging.disable()
    limit_memory()
    wrong = 0
    for name in args.kinds:
        try:
            print(json.dumps({"kind": name, **check(name, args.count)}), flush=True)
        except AssertionError as error:
            wrong += 1
            notes = " ".join(getattr(error, "__notes__", ()))
            print(json.dumps({"kind": name, "wrong": f"{error} {notes}"[:2000]}), flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
