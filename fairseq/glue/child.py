"""``fairseq-train`` as a child that never outlives its parent: ``python -m fairseq.glue.child OPTIONS``.

Its standard input is a pipe that the parent holds open and never writes to. When the parent ends, even by SIGKILL, the
pipe closes and the child ends too, so that a new start finds nobody writing into the directories of the runs.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading

ORPHANED = 143


def _watch() -> None:
    while os.read(0, 1):
        pass
    os._exit(ORPHANED)


if __name__ == "__main__":
    threading.Thread(target=_watch, daemon=True).start()
    sys.argv[0] = "fairseq-train"
    runpy.run_module("fairseq.cli.train", run_name="__main__", alter_sys=True)
