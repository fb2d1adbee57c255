#!/usr/bin/env python3
"""Average the weights of several checkpoints into one.

Either name the files (``--inputs a.pt b.pt --output mean.pt``) or a directory with one of ``--num-epoch-checkpoints``,
``--num-update-checkpoints`` (the latest N) or ``--num-best-checkpoints`` (of the named ``checkpoint.best_*`` files).
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence

from fairseq.checkpoint.atomic import atomic_save
from fairseq.checkpoint.reader import average_checkpoints
from fairseq.checkpoint.store import checkpoint_paths
from fairseq.cli.common import run_command
from fairseq.dataclass.flags import FairseqParser
from fairseq.errors import CheckpointError, ConfigError
from fairseq.file_io import check_outputs

__all__ = ["average_checkpoints", "last_n_checkpoints", "main"]


def last_n_checkpoints(paths: Sequence[str], n: int, update_based: bool, upper_bound: int | None = None) -> list[str]:
    """The ``n`` latest epoch or update checkpoints of the one directory in ``paths``, not later than ``upper_bound``."""
    if len(paths) != 1:
        raise ConfigError(f"--inputs must be one directory for this option, but is {len(paths)} paths instead")
    pattern = r"checkpoint_\d+_(\d+)\.pt" if update_based else r"checkpoint(\d+)\.pt"
    found = [
        path
        for path, number in checkpoint_paths(paths[0], pattern, keep_match=True)
        if upper_bound is None or number <= upper_bound
    ]
    if len(found) < n:
        raise CheckpointError(f"found {len(found)} checkpoint files in {paths[0]} but need at least {n}")
    return found[:n]


def best_n_checkpoints(paths: Sequence[str], n: int) -> list[str]:
    """The ``n`` files with the smallest value in their names (``checkpoint.best_loss_2.3450.pt``)."""

    def value(path: str) -> float:
        match = re.search(r"_(-?\d+(\.\d+)?)\.pt$", os.path.basename(path))
        if match is None:
            raise ConfigError(f"{path} has no value in its name; --num-best-checkpoints needs checkpoint.best_* files")
        return float(match.group(1))

    return sorted(paths, key=value)[:n]


def get_parser() -> argparse.ArgumentParser:
    parser = FairseqParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--inputs",
        required=True,
        nargs="+",
        help="checkpoint files, or one directory with --num-epoch-checkpoints or --num-update-checkpoints",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="file to write the averaged checkpoint to")
    latest = parser.add_mutually_exclusive_group()
    latest.add_argument(
        "--num-epoch-checkpoints", type=int, metavar="N", help="average the last N checkpoint<epoch>.pt"
    )
    latest.add_argument(
        "--num-update-checkpoints", type=int, metavar="N", help="average the last N checkpoint_<epoch>_<update>.pt"
    )
    latest.add_argument(
        "--num-best-checkpoints", type=int, default=0, metavar="N", help="average the N best of the named files"
    )
    parser.add_argument(
        "--checkpoint-upper-bound",
        type=int,
        metavar="N",
        help="use no epoch (--num-epoch-checkpoints) or update (--num-update-checkpoints) after N",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    inputs = list(args.inputs)
    latest = args.num_update_checkpoints or args.num_epoch_checkpoints
    if args.checkpoint_upper_bound is not None and not latest:
        raise ConfigError("--checkpoint-upper-bound needs --num-epoch-checkpoints or --num-update-checkpoints")
    if latest:
        inputs = last_n_checkpoints(inputs, latest, bool(args.num_update_checkpoints), args.checkpoint_upper_bound)
    elif args.num_best_checkpoints > 0:
        inputs = best_n_checkpoints(inputs, args.num_best_checkpoints)
    elif len(inputs) == 1 and os.path.isdir(inputs[0]):
        raise ConfigError(
            f"{inputs[0]} is a directory: say which of its checkpoints, with --num-epoch-checkpoints or --num-update-checkpoints"
        )
    check_outputs([args.output], inputs)
    print("averaging checkpoints:", *inputs, sep="\n  ")
    atomic_save(average_checkpoints(inputs), args.output)
    print(f"finished writing averaged checkpoint to {args.output}")


if __name__ == "__main__":
    run_command("average_checkpoints", main)
