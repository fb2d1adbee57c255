"""A whole ``fairseq-glue`` command: checkpoint, data, plan, runs, table, picture, predictions."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fairseq.errors import ConfigError, TrainingError
from fairseq.finetune.glue_files import TASKS, GlueTask
from fairseq.glue import plan, recipe, report
from fairseq.glue.data import Preparation, TaskData, choose
from fairseq.glue.files import claimed
from fairseq.glue.plan import Limits, Run
from fairseq.glue.pretrained import PretrainedModel, read_pretrained
from fairseq.glue.runs import Execution, find_slots
from fairseq.glue.scores import METRICS, best_point, best_run, by_task, constant_score
from fairseq.glue.submission import diagnostic_data, predict


@dataclass(frozen=True)
class Request:
    """What the command line asks for; ``trainer``: see `Execution`."""

    checkpoint: str
    data_dir: Path
    out: Path
    trainer: Sequence[str]
    tasks: Sequence[str] = ("all",)
    recipe: str = "roberta"
    seeds: int = 5
    given: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    train_examples: int | None = None
    jobs: int | None = None
    cores: int = 1
    cpu: bool = False
    dictionary: str | None = None
    bpe: str | None = None
    bpe_options: Mapping[str, Any] = field(default_factory=dict)
    keep: str = "none"
    resumable: bool = False
    predict_test: bool = False
    dry_run: bool = False
    user_dir: str | None = None
    command: str = "fairseq-glue"


def run(request: Request) -> None:
    """Do everything. Raises ConfigError and its siblings before any run, TrainingError at the end if a run failed."""
    tasks, missing = choose(request.tasks, request.data_dir)
    names = [task.name for task in tasks]
    chosen = recipe.load(request.recipe, list(_trainable()))
    begin = read_pretrained(request.checkpoint, request.dictionary, request.bpe, dict(request.bpe_options))
    # Mistakes in recipe and options come to light before anything is preprocessed.
    plan.make(chosen, begin, [TaskData.unknown(name) for name in names], 1, request.given, request.limits)
    if missing:
        _say(f"not in {request.data_dir}: {'; '.join(missing)}")
    with claimed(request.out) as lock:
        preparation = Preparation(
            begin, request.data_dir, request.out / "data", request.train_examples, workers=request.cores
        )
        data = {task.name: _data(preparation, task, request.out) for task in tasks}
        made = plan.make(chosen, begin, list(data.values()), request.seeds, request.given, request.limits)
        campaign = Campaign(request, chosen, begin, data, made, missing, lock)
        if request.dry_run:
            campaign.describe()
            return
        campaign.train()
        if request.predict_test:
            campaign.predict(preparation)
        campaign.finish()


def _trainable() -> list[str]:
    return [name for name, task in TASKS.items() if task.trains]


def _data(preparation: Preparation, task: GlueTask, out: Path) -> TaskData:
    """The preprocessed data of ``task``. Raises ConfigError when there are results on other data."""
    found = preparation.find(task)
    if found is None:
        if any((out / "runs" / task.name).glob("**/result.json")):
            raise ConfigError(
                f"{out / 'runs' / task.name} has results on other data (another --data-dir, dictionary, BPE or "
                "--train-examples); choose another --out, or delete that directory to repeat its runs"
            )
        _say(f"preprocessing {task.name}")
        found = preparation.make(task)
    return found


def _say(line: str) -> None:
    print(line, flush=True)


class Campaign:
    """The runs of one command and what is said about them."""

    def __init__(
        self,
        request: Request,
        chosen: recipe.Recipe,
        begin: PretrainedModel,
        data: dict[str, TaskData],
        made: plan.Plan,
        missing: Sequence[str],
        lock: int,
    ) -> None:
        self.request, self.recipe, self.begin, self.data, self.plan = request, chosen, begin, data, made
        self.missing = missing
        options: dict[str, Any] = {"cpu": request.cpu, "user_dir": request.user_dir}
        if begin.bpe is not None:  # for those who use the fine-tuned models
            options |= {"bpe" if key == "_name" else key: value for key, value in begin.bpe.items()}
        self.execution = Execution(
            out=request.out,
            plan=made,
            checkpoint=begin.path,
            data={name: item.path for name, item in data.items()},
            trainer=request.trainer,
            slots=find_slots(request.jobs, request.cores, begin.parameters, request.cpu),
            select=chosen.select,
            keep=self._keeps,
            report=self._report,
            resumable=request.resumable,
            options=options,
            lock=lock,
        )
        self.waiting = 0

    # -- training ---------------------------------------------------------------------------------------------------

    def describe(self) -> None:
        """What would be run, with the configuration of the first run of every task."""
        for name in self.data:
            mine = [run for run in self.plan.runs if run.task == name]
            _say(f"{name}: {_count(len(mine))} of {mine[0].updates:,} updates, as in:")
            shown = yaml.safe_dump(self.execution.configuration(mine[0]), sort_keys=False, allow_unicode=True)
            _say("".join(f"  {line}\n" for line in shown.splitlines()))

    def train(self) -> None:
        self.execution.collect()
        todo = self.execution.remaining()
        self.waiting = len(todo)
        done = len(self.plan.runs) - len(todo)
        slots = self.execution.slots
        _say(
            f"{_count(len(todo))} to do" + (f", {done} done" if done else "") + f"; {slots.count} at a time, "
            f"{slots.threads} thread(s) each"
        )
        self.execution.run_all(todo)

    def _report(self, execution: Execution, run: Run) -> None:
        """One line per finished run."""
        self.waiting -= 1
        total = len(self.plan.runs)
        place = f"[{total - self.waiting}/{total}] {run.title}"
        if run in execution.failures:
            _say(f"{place} FAILED: {execution.failures[run]}")
        else:
            result = execution.results[run]
            baseline = constant_score(run.metric, self.data[run.task].labels["valid"])
            collapsed = "" if result.beat_baseline(baseline) else ", COLLAPSED"
            _say(
                f"{place}: {METRICS[run.metric]} {result.score(self.recipe.select):.1f} (constant answer {baseline:.1f}"
                f"{collapsed}) in {_duration(result.seconds)}; {self.waiting or 'none'} to go"
            )
        report.write_table(self._report_table(), self.request.out)

    def _keeps(self, run: Run, execution: Execution) -> bool:
        """Whether the model of ``run`` is to be kept, as far as is known now."""
        if self.request.keep == "all":
            return True
        done = execution.results.keys() | execution.failures.keys()
        if any(other.after == run and other not in done for other in self.plan.runs):
            return True
        if self.request.keep == "none" and not self.request.predict_test:
            return False
        if run not in execution.results:
            return True
        rivals = [
            item for other, item in execution.results.items() if (other.task, other.point) == (run.task, run.point)
        ]
        return best_run(rivals, self.recipe.select).run == run

    # -- what comes out ---------------------------------------------------------------------------------------------

    def _report_table(self) -> report.Report:
        notes = list(self.plan.notes)
        if self.request.train_examples is not None:
            notes.append(
                f"Training was limited to {self.request.train_examples:,} rows per task (--train-examples, a fixed random "
                "choice): these are not scores of the full tasks."
            )
        limits = self.request.limits
        for flag, value in (("--max-epoch", limits.max_epoch), ("--max-updates", limits.max_updates)):
            if value is not None:
                notes.append(f"Training was cut short by {flag} {value:,}; the schedule was shortened with it.")
        if self.missing:
            notes.append(f"Not run, because the data is not there: {'; '.join(self.missing)}.")
        return report.Report(
            self.request.command,
            self.begin.path.name,
            self.begin.parameters,
            self.recipe,
            self.plan.runs,
            self.data,
            self.execution.results,
            self.execution.failures,
            notes,
        )

    def predict(self, preparation: Preparation) -> None:
        """Test predictions of the best run of each task; a run whose model was not kept is done again for it."""
        best = {
            name: best_run(mine, self.recipe.select).run
            for name, mine in by_task(list(self.execution.results.values())).items()
        }
        lost = self.execution.with_sources([run for run in best.values() if not self.execution.model(run).is_file()])
        if lost:
            self.waiting = len(lost)
            _say(f"{_count(len(lost))} to repeat, because the models were not kept")
            self.execution.run_all(lost)
        out = self.request.out / "submission"
        for name, run in best.items():
            model = self.execution.model(run)
            written = predict(model, TASKS[name], self.data[name].path, out)
            if name == "MNLI":
                diagnostic = diagnostic_data(preparation, self.data[name].path)
                written += predict(model, TASKS["AX"], diagnostic, out) if diagnostic is not None else []
            shown = ", ".join(str(path) for path in written) or "nothing, because there is no test set"
            _say(f"{name}: {shown} ({run.title})")

    def finish(self) -> None:
        """Table and picture; models of settings that lost go. Raises TrainingError if a run failed."""
        made = self._report_table()
        text = report.write_table(made, self.request.out)
        print(f"\n{text}")
        if self.execution.results:
            title = f"{self.begin.path.name}, recipe {self.recipe.name}: median and range over the seeds"
            report.draw(made.lines(), title, self.request.out / "table.png")
            self._drop_losers()
            _say(f"written to {self.request.out}: table.md, table.png, results.jsonl")
        if self.execution.failures:
            sys.stdout.flush()
            raise TrainingError(
                f"{len(self.execution.failures)} of {len(self.plan.runs)} runs failed (see the table and the log.txt of "
                f"each in {self.request.out / 'runs'}); the same command tries them again"
            )

    def _drop_losers(self) -> None:
        if self.request.keep == "all":
            return
        for mine in by_task(list(self.execution.results.values())).values():
            point = best_point(mine, self.recipe.select)
            for result in mine:
                if result.run.point != point:
                    self.execution.model(result.run).unlink(missing_ok=True)


def _count(runs: int) -> str:
    return "1 run" if runs == 1 else f"{runs} runs"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
