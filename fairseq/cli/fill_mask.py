"""``fairseq-fill-mask``: what a trained model puts in the place of ``<mask>``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fairseq.cli.common import add_bpe_options, add_model_options, batches, load_hub, run_command
from fairseq.cli.process import prepare_to_compute
from fairseq.dataclass.flags import FairseqParser
from fairseq.errors import ConfigError
from fairseq.finetune.reading import decode_lines

PROGRAM = "fairseq-fill-mask"
BATCH_LINES = 32
_EXAMPLES = """\
examples:
  fairseq-fill-mask --path checkpoints/checkpoint_best.pt --data data-bin "The capital of China is <mask>."
  fairseq-fill-mask --path roberta.base --topk 3 < sentences.txt
Without texts, lines are read from standard input.
"""


def get_parser() -> argparse.ArgumentParser:
    """The options; those of every BPE are there only when given, so that the checkpoint's own are kept."""
    parser = FairseqParser(
        prog=PROGRAM,
        description="Show the most probable words for every <mask> of a text, with their probabilities.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("text", nargs="*", help="texts with one or more <mask>")
    add_model_options(parser)
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="directory with dict.txt; default: that of the checkpoint, else that of its training",
    )
    parser.add_argument("--topk", type=int, default=5, metavar="N", help="candidates for each mask (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object a text instead of tables")
    add_bpe_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """Load the model, then answer the texts of ``args`` or of standard input."""
    if args.topk < 1:
        raise ConfigError(f"--topk must be at least 1, but is {args.topk} instead")
    prepare_to_compute()
    hub = load_hub(args)
    # One at a time for a person who types, who wants an answer at once.
    size = 1 if sys.stdin.isatty() and not args.text else BATCH_LINES
    for batch in batches(args.text or _lines(), size):
        for text, result in zip(batch, hub.fill_mask(batch, topk=args.topk), strict=True):
            masks = [result] if hasattr(result[0], "probability") else result
            print(as_json(text, masks) if args.json else as_table(text, masks), flush=True)


def _lines() -> Iterator[str]:
    if sys.stdin.isatty():
        print("Type a text with <mask> and press return; end with Ctrl-D.", file=sys.stderr)
    source = getattr(sys.stdin, "buffer", None) or (line.encode() for line in sys.stdin)
    for _, line in decode_lines(source, Path("standard input")):
        if line.strip():
            yield line


def as_json(text: str, masks: Sequence[Sequence[Any]]) -> str:
    """``{"input": ..., "masks": [[{"text", "probability", "token"}, ...], ...]}`` on one line."""
    candidates = [[candidate._asdict() for candidate in mask] for mask in masks]
    return json.dumps({"input": text, "masks": candidates}, ensure_ascii=False)


def as_table(text: str, masks: Sequence[Sequence[Any]]) -> str:
    """The text, then for each mask its candidates with rank, probability in percent and the filled text."""
    lines = [text]
    for number, mask in enumerate(masks, start=1):
        if len(masks) > 1:
            lines.append(f" mask {number}")
        width = max(len(repr(candidate.token)) for candidate in mask)
        for rank, candidate in enumerate(mask, start=1):
            lines.append(
                f"  {rank:>2}  {100 * candidate.probability:7.3f} %  {candidate.token!r:<{width}}  {candidate.text}"
            )
    return "\n".join([*lines, ""])


def cli_main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    run_command(PROGRAM, lambda: main(get_parser().parse_args(argv)))


if __name__ == "__main__":
    cli_main()
