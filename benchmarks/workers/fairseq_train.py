"""Runs `fairseq-train` in this process and reports when each update ended; for the original and for this package.

    python fairseq_train.py REPORT.json FLAG ...

Only names that both have are used (`fairseq.trainer.Trainer`, `fairseq_cli.train.cli_main`), so that the very same
measurement is taken of both. REPORT.json: `starts` and `ends`, the time of day at which each update began (its batch was
there) and was complete, and `cpu`, the processor time that this process had then used (seconds).
"""

import json
import logging
import os
import sys
import time


def main():
    report = sys.argv.pop(1)
    sys.argv[0] = "fairseq-train"
    logging.basicConfig(  # before anything of fairseq is imported: the original's own set-up is by its command only
        format="%(asctime)s | %(levelname)s | %(name)s | %(message)s", level=logging.INFO, stream=sys.stdout
    )
    from fairseq.training.trainer import Trainer
    from fairseq_cli.train import cli_main

    train_step = Trainer.train_step
    starts, ends, cpu = [], [], []

    def timed(self, *args, **kwargs):
        starts.append(time.time())
        result = train_step(self, *args, **kwargs)
        ends.append(time.time())
        cpu.append(time.process_time())
        return result

    Trainer.train_step = timed
    try:
        cli_main()
    finally:
        import torch

        facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "process": os.getpid()}
        with open(report, "w") as file:
            json.dump({"starts": starts, "ends": ends, "cpu": cpu, **facts}, file)


if __name__ == "__main__":
    main()
