"""``fairseq-convert``: a pretrained model from one format to another."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from fairseq.cli.common import run_command
from fairseq.dataclass.flags import FairseqParser
from fairseq.dataclass.user_module import import_user_module
from fairseq.errors import ConfigError
from fairseq.registry import FORMATS

PROGRAM = "fairseq-convert"
SENTENCES, POOLINGS = "sentence-transformers", ("mean", "first")
_EXAMPLES = """\
examples:
  fairseq-convert --from ultrafastbert --to fairseq UltraFastBERT-1x11-long converted
  fairseq-convert --from bigs-flax --to fairseq BiGS_512 converted
  fairseq-convert --from fairseq-alibi-clap --to fairseq-upstream checkpoint.pt compatible.pt
  fairseq-convert --from fairseq --to hf-auto checkpoints my-model
  fairseq-convert --from fairseq --to sentence-transformers --pooling mean checkpoints my-embeddings
"""


def get_parser(program: str = PROGRAM) -> argparse.ArgumentParser:
    known = ", ".join(FORMATS.names())
    parser = FairseqParser(
        prog=program,
        description="Convert a pretrained model from one format to another.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--from", dest="source", required=True, metavar="FORMAT", help=f"what SRC is: {known}")
    parser.add_argument(
        "--to", dest="target", required=True, metavar="FORMAT", help="what DST shall be, one of the same"
    )
    parser.add_argument(
        "--special",
        default="",
        metavar="NAME=ID,...",
        help="ids of the special tokens cls, pad, sep, unk, mask in SRC; default: what its tokenizer.json or vocab.txt says",
    )
    parser.add_argument(
        "--pooling",
        choices=POOLINGS,
        default=None,
        help="sentence-transformers only: how the vectors of a text become one, their mean or that of the first token [mean]",
    )
    parser.add_argument(
        "--no-normalize",
        action="store_true",
        help="sentence-transformers only: leave the lengths of vectors as they are",
    )
    parser.add_argument("--user-dir", metavar="DIR", help="import this plugin directory first")
    parser.add_argument("source_path", metavar="SRC", help="file or folder to read")
    parser.add_argument("target_path", metavar="DST", help="file or folder to write")
    return parser


def main(args: argparse.Namespace) -> None:
    from fairseq.interop.convert import convert_checkpoint  # --help does not wait for torch
    from fairseq.interop.vocabulary import parse_special

    import_user_module(args)
    if args.target != SENTENCES and (args.pooling or args.no_normalize):
        raise ConfigError(f"--pooling and --no-normalize belong to --to {SENTENCES}")
    sentence = {"pooling": args.pooling or "mean", "normalize": not args.no_normalize}
    special = parse_special(args.special)
    convert_checkpoint(args.source, args.target, args.source_path, args.target_path, special, sentence)
    print(f"wrote {args.target_path} ({args.target})")


def cli_main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    run_command(PROGRAM, lambda: main(get_parser().parse_args(argv)))


if __name__ == "__main__":
    cli_main()
