"""A whole ``fairseq-glue`` command: checkpoint, data, plan, runs, table, picture, predictions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from fairseq.errors import ConfigError, TrainingError
from fairseq.finetune.glue_files import TASKS, GlueTask
from fairseq.glue import plan, recipe, report
from fairseq.glue.data import Preparation, TaskData, choose
from fairseq.glue.plan import Request, Run
from fairseq.glue.pretrained import read_pretrained
from fairseq.glue.runs import Execution
from fairseq.glue.scores import METRICS, best_point, best_run, by_task, constant_score
from fairseq.glue.submission import diagnostic_data, predict
from fairseq.locks import claimed


def run(request: Request) -> None:
    """Do everything. Raises ConfigError and its siblings before any run, TrainingError at the end if a run failed."""
    tasks, missing = choose(request.tasks, request.data_dir)
    names = [task.name for task in tasks]
    chosen = recipe.load(request.recipe, [name for name, task in TASKS.items() if task.trains])
    begin = read_pretrained(request.checkpoint, request.dictionary, request.bpe, dict(request.bpe_options))
    # Mistakes in recipe and options come to light before anything is preprocessed.
    plan.make(chosen, begin, [TaskData.unknown(name) for name in names], 1, request.given, request.limits)
    if missing:
        _say(f"not in {request.data_dir}: {'; '.join(missing)}")
    with claimed(request.out, "fairseq-glue", "wait for it, or choose another --out") as lock:
        preparation = Preparation(
            begin, request.data_dir, request.out / "data", request.train_examples, workers=request.cores
        )
        data = {task.name: _data(preparation, task, request.out) for task in tasks}
        made = plan.make(chosen, begin, list(data.values()), request.seeds, request.given, request.limits)
        campaign = Campaign(Execution(request, begin, data, made, chosen.select, lock), chosen, missing)
        if request.dry_run:
            campaign.describe()
            return
        campaign.train()
        if request.predict_test:
            campaign.predict(preparation)
        campaign.finish()


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


@dataclass
class Campaign:
    """The runs of one command and what is said about them; ``missing``: tasks without data; ``waiting``: runs to do."""

    execution: Execution
    recipe: recipe.Recipe
    missing: Sequence[str]
    waiting: int = 0

    # -- training ---------------------------------------------------------------------------------------------------

    def describe(self) -> None:
        """What would be run, with the configuration of the first run of every task."""
        for name in self.execution.data:
            mine = [run for run in self.execution.plan.runs if run.task == name]
            _say(f"{name}: {_count(len(mine))} of {mine[0].updates:,} updates, as in:")
            shown = yaml.safe_dump(self.execution.configuration(mine[0]), sort_keys=False, allow_unicode=True)
            _say("".join(f"  {line}\n" for line in shown.splitlines()))

    def train(self) -> None:
        todo = self.execution.remaining()
        done = len(self.execution.plan.runs) - len(todo)
        slots = self.execution.slots
        _say(
            f"{_count(len(todo))} to do" + (f", {done} done" if done else "") + f"; {slots.count} at a time, "
            f"{slots.threads} thread(s) each"
        )
        self._do(todo)

    def _do(self, runs: Sequence[Run]) -> None:
        self.waiting = len(runs)
        self.execution.run_all(runs, self._report)

    def _report(self, run: Run) -> None:
        """One line per finished run."""
        execution = self.execution
        self.waiting -= 1
        total = len(execution.plan.runs)
        place = f"[{total - self.waiting}/{total}] {run.title}"
        if run in execution.failures:
            _say(f"{place} FAILED: {execution.failures[run]}")
        else:
            result = execution.results[run]
            baseline = constant_score(run.metric, execution.data[run.task].labels["valid"])
            collapsed = "" if result.beat_baseline(baseline) else ", COLLAPSED"
            _say(
                f"{place}: {METRICS[run.metric]} {result.score(self.recipe.select):.1f} (constant answer {baseline:.1f}"
                f"{collapsed}) in {_duration(result.seconds)}; {self.waiting or 'none'} to go"
            )
        report.write_table(self._report_table(), execution.request.out)

    # -- what comes out ---------------------------------------------------------------------------------------------

    def _report_table(self) -> report.Report:
        execution, request = self.execution, self.execution.request
        notes = list(execution.plan.notes)
        if request.train_examples is not None:
            notes.append(
                f"Training was limited to {request.train_examples:,} rows per task (--train-examples, a fixed random "
                "choice): these are not scores of the full tasks."
            )
        for flag, value in zip(("--max-epoch", "--max-updates"), request.limits, strict=True):
            if value is not None:
                notes.append(f"Training was cut short by {flag} {value:,}; the schedule was shortened with it.")
        if self.missing:
            notes.append(f"Not run, because the data is not there: {'; '.join(self.missing)}.")
        return report.Report(
            request.command,
            execution.start.path.name,
            execution.start.parameters,
            self.recipe,
            execution.plan.runs,
            execution.data,
            execution.results,
            execution.failures,
            notes,
        )

    def predict(self, preparation: Preparation) -> None:
        """Test predictions of the best run of each task; a run whose model was not kept is done again for it."""
        execution, select = self.execution, self.recipe.select
        best = {name: best_run(mine, select).run for name, mine in by_task(execution.results.values()).items()}
        lost = execution.with_sources([run for run in best.values() if not execution.model(run).is_file()])
        if lost:
            _say(f"{_count(len(lost))} to repeat, because the models were not kept")
            self._do(lost)
        out = execution.request.out / "submission"
        for name, run in best.items():
            model, data = execution.model(run), execution.data[name].path
            written = predict(model, TASKS[name], data, out)
            if name == "MNLI":
                diagnostic = diagnostic_data(preparation, data)
                written += predict(model, TASKS["AX"], diagnostic, out) if diagnostic is not None else []
            shown = ", ".join(str(path) for path in written) or "nothing, because there is no test set"
            _say(f"{name}: {shown} ({run.title})")

    def finish(self) -> None:
        """Table and picture; models of settings that lost go. Raises TrainingError if a run failed."""
        execution, out = self.execution, self.execution.request.out
        made = self._report_table()
        text = report.write_table(made, out)
        print(f"\n{text}")
        if execution.results:
            title = f"{execution.start.path.name}, recipe {self.recipe.name}: median and range over the seeds"
            report.draw(made.lines(), title, out / "table.png")
            if execution.request.keep != "all":
                self._drop_losers()
            _say(f"written to {out}: table.md, table.png, results.jsonl")
        if execution.failures:
            sys.stdout.flush()
            raise TrainingError(
                f"{len(execution.failures)} of {len(execution.plan.runs)} runs failed (see the table and the log.txt of "
                f"each in {out / 'runs'}); the same command tries them again"
            )

    def _drop_losers(self) -> None:
        for mine in by_task(self.execution.results.values()).values():
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
