#!/usr/bin/env python3
"""Convert a checkpoint between the formats of related programs.

python scripts/convert_checkpoint.py --from fairseq-alibi-clap --to fairseq-upstream SRC DST
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fairseq.errors import FairseqError
from fairseq.interop.convert import CONVERSIONS, convert_checkpoint


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="conversions: " + "; ".join(f"{source} to {target}" for source, target in CONVERSIONS),
    )
    parser.add_argument("--from", dest="source", required=True, metavar="FORMAT", help="what SRC is")
    parser.add_argument("--to", dest="target", required=True, metavar="FORMAT", help="what DST shall be")
    parser.add_argument("source_path", metavar="SRC", help="checkpoint to read")
    parser.add_argument("target_path", metavar="DST", help="file to write")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    convert_checkpoint(args.source, args.target, args.source_path, args.target_path)
    print(f"wrote {args.target_path} ({args.target})")


if __name__ == "__main__":
    try:
        main()
    except FairseqError as error:
        sys.exit(f"convert_checkpoint: error: {error}")
