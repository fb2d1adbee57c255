"""``fairseq-train``: train a model; flags come from the configuration of the chosen task, model, criterion, ..."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fairseq.cli.common import run_command, set_up

if TYPE_CHECKING:
    from fairseq.dataclass.configs import FairseqConfig


def main(cfg: FairseqConfig | argparse.Namespace) -> float | None:
    """Train as ``cfg`` says (a configuration, or the flags that ``fairseq-train`` parsed)."""
    from fairseq.distributed.utils import call_main

    return call_main(set_up(cfg), train_here)


def train_here(cfg: FairseqConfig) -> float | None:
    """In one of the processes of the run: train."""
    set_up(cfg)
    # Imported here so that --help and mistakes on the command line do not wait for torch.
    from omegaconf import OmegaConf

    from fairseq.distributed.group import is_master
    from fairseq.logging.setup import configure_logging, log_warnings_only
    from fairseq.training.run import train

    if is_master(cfg.distributed_training):
        job_logging = cfg.get("job_logging_cfg")  # type: ignore[attr-defined]
        plain: Any = None if job_logging is None else OmegaConf.to_container(job_logging, resolve=True)
        configure_logging(cfg.common.log_file, job_logging=plain)
    else:
        log_warnings_only(cfg.distributed_training.distributed_rank)
    return train(cfg)


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
