"""Doing the runs of a plan: several at a time, going on where an earlier command stopped.

A run has the directory ``DIR/runs/RTE/seed1``: ``config.yaml``, ``log.txt``, ``checkpoints`` while it runs, ``result.json``
when it is done and ``model.pt`` when its model is kept.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

from fairseq.errors import TrainingError
from fairseq.glue import scores
from fairseq.glue.data import TaskData
from fairseq.glue.files import remove_made, replace_text, stored_json, write_json
from fairseq.glue.plan import Plan, Request, Run
from fairseq.glue.pretrained import PretrainedModel
from fairseq.glue.scores import Result

PACKAGE_ROOT = Path(__file__).resolve().parents[2]
MODEL = "model.pt"
_GRACE = 10.0  # seconds that children have to end by themselves
_BYTES_PER_PARAMETER = 24  # weights, gradients, two moments, and a checkpoint while it is written
_BYTES_PER_RUN = 1_500_000_000  # the process itself and the activations of a small batch


@dataclass(frozen=True)
class Slots:
    """``count`` runs at a time with ``threads`` each; ``devices`` are the GPUs they take turns on."""

    count: int
    threads: int
    devices: tuple[str, ...] = ()

    def environment(self, slot: int) -> dict[str, str]:
        """Variables for the run in place ``slot`` (0 ... count - 1)."""
        found = {}
        if "OMP_NUM_THREADS" not in os.environ:
            found["OMP_NUM_THREADS"] = found["MKL_NUM_THREADS"] = str(self.threads)
        if self.devices:
            found["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        return found


def find_slots(jobs: int | None, cores: int, parameters: int, cpu: bool = False) -> Slots:
    """Room for ``jobs`` runs; by default one per GPU, and without GPUs as many as ``cores`` and half the memory allow.

    ``OMP_NUM_THREADS`` in the environment, if set, is what the user wants.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = 0 if cpu else torch.cuda.device_count()
    devices = tuple((given.split(",") if given else list(map(str, range(gpus))))[:gpus])
    if jobs is None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        jobs = gpus or max(1, min(cores, memory // (_BYTES_PER_RUN + _BYTES_PER_PARAMETER * parameters)))
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return Slots(jobs, int(threads) if threads.isdecimal() else max(1, cores // jobs), devices)


@dataclass
class Execution:
    """The state of a command: ``results`` of finished runs, ``failures`` run -> last line of its log.

    ``select``: which checkpoint of a run is its model, ``best`` or ``last``; ``lock``: a descriptor that
    children inherit.
    """

    request: Request
    start: PretrainedModel
    data: Mapping[str, TaskData]
    plan: Plan
    select: str
    lock: int | None
    results: dict[Run, Result] = field(default_factory=dict)
    failures: dict[Run, str] = field(default_factory=dict)

    @cached_property
    def slots(self) -> Slots:
        """The places in which runs are done."""
        return find_slots(self.request.jobs, self.request.cores, self.start.parameters, self.request.cpu)

    def directory(self, run: Run) -> Path:
        return self.request.out / "runs" / run.name

    def model(self, run: Run) -> Path:
        """Where the model of a finished run is, if it was kept."""
        return self.directory(run) / MODEL

    def keeps(self, run: Run) -> bool:
        """Whether the model of ``run`` is to be kept, as far as is known now; asked again after each run."""
        if self.request.keep == "all":
            return True
        if any(other.after == run and not self._done(other) for other in self.plan.runs):
            return True
        if self.request.keep == "none" and not self.request.predict_test:
            return False
        if run not in self.results:
            return True
        rivals = [item for other, item in self.results.items() if (other.task, other.point) == (run.task, run.point)]
        return scores.best_run(rivals, self.select).run == run

    def remaining(self) -> list[Run]:
        """What earlier commands left to do: the runs without a result, and those that they start from if their models are
        gone. Raises ConfigError when something was made with other settings."""
        for run in self.plan.runs:
            result = scores.find_result(self.directory(run), run)
            if result is not None:
                self.results[run] = result
        return self.with_sources([run for run in self.plan.runs if run not in self.results])

    def with_sources(self, runs: Sequence[Run]) -> list[Run]:
        """``runs`` and those that they start from, unless their models are there; in the order of the plan."""
        todo = set(runs) | {run.after for run in runs if run.after is not None and not self.model(run.after).is_file()}
        return [run for run in self.plan.runs if run in todo]

    def run_all(self, runs: Sequence[Run], report: Callable[[Run], None]) -> None:
        """Do ``runs`` and ``report`` each. A failed one is noted and the others go on; KeyboardInterrupt ends all children first."""
        waiting = list(runs)
        for run in waiting:
            self.results.pop(run, None)
        running: dict[Run, _Child] = {}
        slots = list(range(self.slots.count))
        try:
            while waiting or running:
                for run in [run for run in waiting if run.after is None or self._done(run.after)][: len(slots)]:
                    waiting.remove(run)
                    if run.after in self.failures:
                        self.failures[run] = f"not run, because {run.after.title} failed"
                        report(run)
                        continue
                    running[run] = self._start(run, slots.pop(0))
                for run, child in list(running.items()):
                    if child.process.poll() is not None:
                        del running[run]
                        slots.append(child.slot)
                        self._finish(run, child)
                        report(run)
                time.sleep(0.05)
        finally:
            _end(list(running.values()))

    def _done(self, run: Run) -> bool:
        return run in self.results or run in self.failures

    def _start(self, run: Run, slot: int) -> _Child:
        where = self.directory(run)
        settings = where / "settings.json"
        goes_on = self.request.resumable and stored_json(settings) == json.loads(json.dumps(run.settings()))
        if not goes_on:
            remove_made(where, settings.name)
        where.mkdir(parents=True, exist_ok=True)
        write_json(settings, run.settings())
        config = where / "config.yaml"
        replace_text(config, yaml.safe_dump(self.configuration(run), sort_keys=False, allow_unicode=True))
        with (where / "log.txt").open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [*self.request.trainer, str(config)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(slot),
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends its children
                pass_fds=() if self.lock is None else (self.lock,),
            )
        return _Child(process, slot, time.monotonic())

    def configuration(self, run: Run) -> dict[str, Any]:
        """What training is given for ``run``, section -> key -> value."""
        begin = self.model(run.after) if run.after is not None else self.start.path
        options: dict[str, Any] = {"data": str(self.data[run.task].path), "finetune_from_model": str(begin)}
        options |= {**self._saving(run), "cpu": self.request.cpu, "user_dir": self.request.user_dir}
        if self.start.bpe is not None:  # for those who use the fine-tuned models
            options |= {"bpe" if key == "_name" else key: value for key, value in self.start.bpe.items()}
        return run.configuration(options)

    def _environment(self, slot: int) -> dict[str, str]:
        found = {**os.environ, **self.slots.environment(slot)}
        if (PACKAGE_ROOT / "pyproject.toml").is_file():  # a checkout that may not be installed
            found["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH")]))
        return found

    def _saving(self, run: Run) -> dict[str, Any]:
        """Which checkpoints a run writes: none, unless its model may be needed or it is to be resumable."""
        options: dict[str, Any] = {"save_dir": str(self.directory(run) / "checkpoints")}
        resumable = self.request.resumable
        if not resumable and not self.keeps(run):
            return {**options, "no_save": True}
        options |= {"no_epoch_checkpoints": True, "no_save_optimizer_state": not resumable}
        options["no_last_checkpoints"] = self.select == "best" and not resumable
        if run.options.get("validate_interval_updates") and self.select == "best":
            options |= {"save_interval_updates": run.options["validate_interval_updates"], "keep_interval_updates": 1}
        return options

    def _finish(self, run: Run, child: _Child) -> None:
        assert child.process.stdin is not None
        child.process.stdin.close()
        where = self.directory(run)
        log = where / "log.txt"
        if child.process.returncode:
            self.failures[run] = scores.last_error(log)
            return
        try:
            curve = scores.read_curve(run, log)
        except TrainingError as error:
            self.failures[run] = str(error)
            return
        written = where / "checkpoints" / f"checkpoint_{self.select}.pt"
        if written.is_file() and self.keeps(run):
            os.replace(written, where / MODEL)
        shutil.rmtree(where / "checkpoints", ignore_errors=True)
        self.results[run] = Result(run, curve, time.monotonic() - child.started)
        scores.write_result(where, self.results[run])
        for other in self.results:
            if not self.keeps(other):
                self.model(other).unlink(missing_ok=True)


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    slot: int
    started: float


def _end(children: list[_Child]) -> None:
    """End the children: politely, then by force."""
    for child in children:
        child.process.terminate()
    end = time.monotonic() + _GRACE
    for child in children:
        try:
            child.process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
