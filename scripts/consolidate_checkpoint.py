#!/usr/bin/env python3
"""Make one ordinary checkpoint file of a sharded checkpoint, as a run without --use-sharded-state would have written it.

python scripts/consolidate_checkpoint.py checkpoints/checkpoint_best.pt model.pt

A run with --ddp-backend fully_sharded --use-sharded-state writes a small file, checkpoint_best.pt, and beside it a directory,
checkpoint_3_500.shards, with a part of the model for each process. Everything here reads the two together as if they were
one file, so this is only needed to hand a checkpoint to somebody else, or to a program that does not know them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fairseq.checkpoint.atomic import atomic_save
from fairseq.checkpoint.reader import load_checked
from fairseq.checkpoint.shard_reader import file_of, is_whole
from fairseq.cli.common import run_command
from fairseq.dataclass.flags import FairseqParser
from fairseq.errors import ConfigError
from fairseq.file_io import check_outputs


def get_parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = FairseqParser(description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "source", metavar="DIR", help="the checkpoint: its directory (*.shards), or the .pt file beside it"
    )
    parser.add_argument("output", metavar="OUT.pt", help="the file to write")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    source = file_of(args.source)
    if Path(args.output).is_dir():
        raise ConfigError(f"{args.output} is a directory; name the file to write")
    check_outputs([args.output], [source])
    if is_whole(source):
        raise ConfigError(f"{source} is one ordinary file already; copy it")
    atomic_save(load_checked(source), args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    run_command("consolidate_checkpoint", main)
