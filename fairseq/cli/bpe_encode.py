"""Encode text with the GPT-2 BPE, line by line: the program behind ``examples/roberta/multiprocessing_bpe_encoder.py``.

`fairseq-preprocess --bpe gpt2` does this and the binarization in one step; this program is for those who want the ids
as text.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from fairseq.cli.common import batches, run_command
from fairseq.data.encoders.gpt2_bpe import Encoder, get_encoder
from fairseq.data.pool import map_in_order
from fairseq.data.preprocessing import json_text
from fairseq.data.text import LoneReturns, describe_lone_returns, read_blocks
from fairseq.dataclass.flags import FairseqParser
from fairseq.errors import ConfigError, DataError, DataNotFoundError
from fairseq.file_io import check_outputs, complete_file

BATCH = 500  # rows a worker takes at a time
REPORT = 10000  # rows between two progress lines
Row = tuple[str, ...]


_tables = functools.cache(get_encoder)


class MultiprocessingEncoder:
    """Rows of parallel lines to rows of ids. The tables are read once per process.

    Args:
        args: ``encoder_json``, ``vocab_bpe``, ``keep_empty`` and ``jsonlines`` of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args

    def initializer(self) -> None:
        """Read the tables now."""
        _tables(self.args.encoder_json, self.args.vocab_bpe)

    @property
    def bpe(self) -> Encoder:
        return _tables(self.args.encoder_json, self.args.vocab_bpe)

    def encode(self, line: str) -> list[str]:
        """Ids of ``line`` in decimal."""
        return [str(idx) for idx in self.bpe.encode(line)]

    def decode(self, tokens: Sequence[str | int]) -> str:
        return self.bpe.decode([int(token) for token in tokens])

    def encode_lines(self, lines: Sequence[str]) -> tuple[str, list[str] | None]:
        """("PASS", one line of ids for each input), or ("EMPTY", None) when one is blank and blanks are not kept.

        Lines lose the whitespace at both ends, texts of ``--jsonlines`` do not; an empty text is kept.
        """
        encoded = []
        for line in lines:
            text = line.strip()
            if not text and not self.args.keep_empty:
                return "EMPTY", None
            if text and getattr(self.args, "jsonlines", False):
                text = json_text(text, "input")
            encoded.append(" ".join(self.encode(text)))
        return "PASS", encoded

    def decode_lines(self, lines: Sequence[str]) -> tuple[str, list[str]]:
        return "PASS", [self.decode(line.strip().split()) for line in lines]

    def encode_rows(self, rows: Sequence[Row]) -> list[tuple[str, list[str] | None]]:
        return [self.encode_lines(row) for row in rows]


def get_parser() -> argparse.ArgumentParser:
    parser = FairseqParser(prog="multiprocessing_bpe_encoder", description="Encode text with the GPT-2 BPE.")
    parser.add_argument("--encoder-json", help="path of encoder.json")
    parser.add_argument("--vocab-bpe", help="path of vocab.bpe")
    parser.add_argument("--inputs", nargs="+", default=["-"], help="input files, read in parallel (- is stdin)")
    parser.add_argument("--outputs", nargs="+", default=["-"], help="output files, one an input (- is stdout)")
    parser.add_argument("--keep-empty", action="store_true", help="keep blank lines")
    parser.add_argument("--jsonlines", action="store_true", help="encode the field 'text' of JSON lines")
    parser.add_argument("--workers", type=int, default=20, help="processes [20]")
    return parser


def main(args: argparse.Namespace) -> None:
    """Encode ``args.inputs`` into ``args.outputs``; memory stays flat. Raises FairseqError for the user's mistakes."""
    if len(args.inputs) != len(args.outputs):
        raise ConfigError(
            f"--inputs and --outputs must be equally many, but are {len(args.inputs)} and {len(args.outputs)}"
        )
    for value, flag in ((args.encoder_json, "--encoder-json"), (args.vocab_bpe, "--vocab-bpe")):
        if not value:
            raise ConfigError(f"{flag} must be given: the path of the GPT-2 BPE's file")
    check_outputs(args.outputs, [*args.inputs, args.encoder_json, args.vocab_bpe])
    encoder = MultiprocessingEncoder(args)
    encoder.initializer()
    filtered = 0
    with contextlib.ExitStack() as stack:
        inputs = [_open(stack, path, "r") for path in args.inputs]
        outputs = [_open(stack, path, "w") for path in args.outputs]  # each appears when everything has succeeded
        encoded = itertools.chain.from_iterable(map_in_order(encoder.encode_rows, _rows(inputs), args.workers))
        for count, (state, lines) in enumerate(encoded, 1):
            filtered += state == "EMPTY"
            for line, output in zip(lines or (), outputs, strict=False):
                output.write(line + "\n")
            if count % REPORT == 0:
                print(f"processed {count} lines", file=sys.stderr)
        for output in outputs:
            output.flush()
        seen = [getattr(stream, "newlines", None) or () for stream in inputs]  # the ends of lines that each has
    for path, ends in zip(args.inputs, seen, strict=True):
        if "\r" in ends and Path(path).is_file():
            returns = LoneReturns()
            deque(read_blocks(path, returns=returns), maxlen=0)
            if returns.count:
                print(f"warning: {describe_lone_returns(path, returns.count)}", file=sys.stderr)
    if filtered:
        print(f"[num_filtered_EMPTY] filtered {filtered} lines", file=sys.stderr)


def _open(stack: contextlib.ExitStack, path: str, mode: str) -> IO[str]:
    if path == "-":
        stream = sys.stdin if mode == "r" else sys.stdout
        stream.reconfigure(encoding="utf-8-sig" if mode == "r" else "utf-8")  # type: ignore[union-attr]
        return stream
    try:
        return stack.enter_context(complete_file(path) if mode == "w" else open(path, encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataNotFoundError(f"file not found: {path}") from None
    except OSError as error:
        raise DataError(f"cannot open {path}: {error.strerror}") from None


def _rows(inputs: Sequence[IO[str]]) -> Iterator[list[Row]]:
    try:
        yield from batches(zip(*inputs, strict=False), BATCH)  # stops at the shortest, as the original does
    except UnicodeDecodeError as error:
        raise DataError(f"the input is not UTF-8 text: {error}") from None


def cli_main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the example script."""
    run_command("multiprocessing_bpe_encoder", lambda: main(get_parser().parse_args(argv)))
