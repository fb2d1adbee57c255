"""``fairseq-train``: train a model; flags come from the configuration of the chosen task, model, criterion, ..."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fairseq.cli.common import run_command, set_up

if TYPE_CHECKING:
    from fairseq.dataclass.configs import FairseqConfig


def main(cfg: FairseqConfig | argparse.Namespace) -> float | None:
    """Train as ``cfg`` says (a configuration, or the flags that ``fairseq-train`` parsed)."""
    cfg = set_up(cfg)
    # Imported here so that --help and mistakes on the command line do not wait for torch.
    from fairseq.distributed.utils import call_main
    from fairseq.logging.setup import configure_logging
    from fairseq.training.run import train

    configure_logging(cfg.common.log_file)
    return call_main(cfg, train)


def cli_main(
    modify_parser: Callable[[argparse.ArgumentParser], None] | None = None, argv: Sequence[str] | None = None
) -> None:
    """Entry point of the command."""
    run_command("fairseq-train", lambda: _run(modify_parser, argv))


def _run(modify_parser: Callable[[argparse.ArgumentParser], None] | None, argv: Sequence[str] | None) -> None:
    from fairseq.dataclass.parser import get_training_parser, parse_args_and_arch

    main(parse_args_and_arch(get_training_parser(), input_args=argv, modify_parser=modify_parser))


if __name__ == "__main__":
    cli_main()
