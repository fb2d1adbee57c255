"""``fairseq-validate``: evaluate a checkpoint; only the options that are typed replace what the checkpoint stores."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairseq.cli.common import find_checkpoint, run_command, set_up

if TYPE_CHECKING:
    from fairseq.dataclass.configs import FairseqConfig


def main(
    cfg: FairseqConfig | argparse.Namespace, override_args: argparse.Namespace | None = None
) -> dict[str, dict[str, Any]]:
    """Statistics of each validation subset; ``override_args`` holds the options that were typed."""
    cfg = set_up(cfg)
    from fairseq.logging.setup import configure_logging
    from fairseq.training.evaluate import evaluate

    if cfg.common_eval.path and Path(cfg.common_eval.path).is_dir():
        cfg.common_eval.path = str(Path(*find_checkpoint(cfg.common_eval.path)))
    configure_logging()
    return evaluate(cfg, vars(override_args) if override_args is not None else None)


def cli_main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    run_command("fairseq-validate", lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    from fairseq.dataclass.parser import get_validation_parser, parse_args_and_arch

    args = parse_args_and_arch(get_validation_parser(), input_args=argv)
    typed = parse_args_and_arch(get_validation_parser(), input_args=argv, suppress_defaults=True)
    main(args, override_args=typed)


if __name__ == "__main__":
    cli_main()
