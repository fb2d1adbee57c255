#!/usr/bin/env python3
"""Train a sentencepiece model on plain text, one sentence a line, and write the dictionary of its pieces.

``PREFIX.model`` is for ``--bpe sentencepiece --sentencepiece-model``, ``PREFIX.dict.txt`` for ``fairseq-preprocess --srcdict``
(it lists the pieces in the order of their ids). The defaults are those of BERT with convolutions: a unigram model of 30000
pieces from ten million sampled sentences.
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Sequence

import sentencepiece

from fairseq.cli.common import run_command
from fairseq.data.dictionary import Dictionary
from fairseq.dataclass.flags import FairseqParser
from fairseq.errors import DataError, DataNotFoundError
from fairseq.file_io import check_outputs, complete_file


def train_sentencepiece(
    inputs: Sequence[str],
    prefix: str,
    vocab_size: int = 30000,
    kind: str = "unigram",
    sentences: int = 10_000_000,
    coverage: float = 0.9995,
) -> None:
    """Write ``prefix``.model and ``prefix``.dict.txt for the text files ``inputs``."""
    missing = [path for path in inputs if not os.path.isfile(path)]
    if missing:
        raise DataNotFoundError(f"there is no text file {missing[0]}")
    check_outputs([f"{prefix}.model", f"{prefix}.dict.txt"], inputs)
    trained = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            input=list(inputs),
            model_writer=trained,
            vocab_size=vocab_size,
            model_type=kind,
            input_sentence_size=sentences,
            shuffle_input_sentence=True,
            character_coverage=coverage,
            minloglevel=1,
        )
    except RuntimeError as error:
        raise DataError(f"sentencepiece cannot train on {', '.join(inputs)}: {str(error).strip()}") from None
    with complete_file(f"{prefix}.model", "wb") as file:
        file.write(trained.getvalue())
    model = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    dictionary = Dictionary()
    for row in range(len(model)):
        if not (model.IsControl(row) or model.IsUnknown(row)):
            dictionary.add_symbol(model.IdToPiece(row))
    dictionary.save(f"{prefix}.dict.txt")


def get_parser() -> argparse.ArgumentParser:
    parser = FairseqParser(description=str(__doc__).split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--input", required=True, nargs="+", metavar="FILE", help="text, one sentence a line")
    parser.add_argument("--prefix", required=True, metavar="PREFIX", help="where the files go")
    parser.add_argument("--vocab-size", type=int, default=30000, metavar="N", help="pieces")
    parser.add_argument("--kind", default="unigram", choices=("unigram", "bpe", "char", "word"), help="kind of model")
    parser.add_argument(
        "--sentences", type=int, default=10_000_000, metavar="N", help="most sentences to learn from, drawn at random"
    )
    parser.add_argument(
        "--coverage", type=float, default=0.9995, metavar="P", help="fraction of characters that have a piece"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    train_sentencepiece(args.input, args.prefix, args.vocab_size, args.kind, args.sentences, args.coverage)
    print(f"wrote {args.prefix}.model and {args.prefix}.dict.txt")


if __name__ == "__main__":
    run_command("train_sentencepiece", main)
