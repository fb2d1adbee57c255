"""Runs `fairseq-train` in this process and reports when each update ended and when each checkpoint was written.

    python saving_train.py REPORT.json FLAG ...

REPORT.json: `updates`, the times at which each update was complete; `saves`, for each save the times at which it was called,
gave the training back, and was written (seconds of one clock), and the processor time that the call and the writing used.
"""

import json
import sys
import threading
import time


def main():
    report = sys.argv.pop(1)
    sys.argv[0] = "fairseq-train"
    from fairseq.checkpoint.store import CheckpointStore
    from fairseq.cli.train import cli_main
    from fairseq.training.trainer import Trainer

    train_step, save, write = Trainer.train_step, CheckpointStore.save, CheckpointStore._write
    updates, saves = [], []

    def timed_step(self, *args, **kwargs):
        result = train_step(self, *args, **kwargs)
        updates.append(time.perf_counter())
        return result

    def timed_save(self, *args, **kwargs):
        start = time.thread_time()
        saves.append({"called": time.perf_counter()})
        result = save(self, *args, **kwargs)
        saves[-1].update(returned=time.perf_counter(), call_cpu=time.thread_time() - start)
        return result

    def timed_write(self, *args, **kwargs):
        mine = saves[-1]
        start = time.thread_time()
        result = write(self, *args, **kwargs)
        mine.update(written=time.perf_counter(), writer_cpu=time.thread_time() - start)
        mine["background"] = threading.current_thread() is not threading.main_thread()
        return result

    Trainer.train_step, CheckpointStore.save, CheckpointStore._write = timed_step, timed_save, timed_write
    try:
        cli_main()
    finally:
        with open(report, "w") as file:
            json.dump({"updates": updates, "saves": saves}, file)


if __name__ == "__main__":
    main()
