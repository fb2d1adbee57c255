"""Runs `fairseq-train` in this process and reports how much memory it and its data workers hold in every epoch.

    python memory_train.py REPORT.json model|data FLAG ...

With `data` the updates are left out: batches are read, masked and collated, and nothing is computed from them. REPORT.json: a
list with one entry per epoch, bytes at its 20th batch (or the first one, if there are fewer), by process: `anonymous` (its own), `file` (its share of mapped
files, the data set). Memory that several processes share is divided among them (Linux: proportional set size).
"""

import json
import os
import re
import sys
from pathlib import Path

AT = 20  # the batch at which memory is looked at: workers are there


def memory_of(process):
    """Bytes that the process holds; none if it has ended meanwhile."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return None
    found = {name: 1024 * int(size) for name, size in re.findall(r"^Pss_(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return {"anonymous": found["Anon"] + found.get("Shmem", 0), "file": found["File"]}


def children():
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found.update(map(int, (task / "children").read_text().split()))
    return sorted(found)


def sample():
    workers = [memory_of(child) for child in children()]
    return {"parent": memory_of(os.getpid()), "workers": [worker for worker in workers if worker]}


def main():
    report, what = sys.argv.pop(1), sys.argv.pop(1)
    sys.argv[0] = "fairseq-train"
    from fairseq.cli.train import cli_main
    from fairseq.training.trainer import Trainer

    train_step, begin_epoch = Trainer.train_step, Trainer.begin_epoch
    epochs, steps = [], [0]

    def counted_step(self, samples, *args, **kwargs):
        steps[0] += 1
        if steps[0] in (1, AT):
            epochs[-1] = sample()
        if what == "model":
            return train_step(self, samples, *args, **kwargs)
        self.set_num_updates(self.get_num_updates() + 1)
        return {}

    def noted_epoch(self, epoch):
        epochs.append(None)
        steps[0] = 0
        return begin_epoch(self, epoch)

    Trainer.train_step, Trainer.begin_epoch = counted_step, noted_epoch
    try:
        cli_main()
    finally:
        with open(report, "w") as file:
            json.dump(epochs, file)


if __name__ == "__main__":
    main()
