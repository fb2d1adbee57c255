"""``python -m fairseq.cli.train_config FILE``: train as a YAML file of groups of settings says, as a child of another command.

The child never outlives its parent: its standard input is a pipe that the parent holds open and never writes to. When
the parent ends, even by SIGKILL, the pipe closes and the child ends too, so that a new start finds nobody writing into
the directories of the runs.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from fairseq.cli import train
from fairseq.cli.common import run_command
from fairseq.cli.hydra_train import complete

ORPHANED = 143


def main(path: str) -> float | None:
    """Train; returns the last validation value."""
    from omegaconf import OmegaConf

    return train.main(complete(OmegaConf.load(path), str(Path.cwd())))


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(ORPHANED)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    run_command("fairseq-train", lambda: main(sys.argv[1]))
