"""``table.md`` and ``results.jsonl``: every score beside the best constant answer, honest about what was cut."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fairseq.finetuning import results as records
from fairseq.finetuning.datasets import TaskData
from fairseq.finetuning.files import write_text
from fairseq.finetuning.plan import Run
from fairseq.finetuning.recipe import Recipe
from fairseq.finetuning.results import Result
from fairseq.finetuning.scores import METRICS, Line, average, grid_medians, lines

GLUE_SIZE = 8  # tasks of the benchmark's mean, WNLI aside


@dataclass(frozen=True)
class Report:
    """Everything that the table is made of."""

    command: str
    checkpoint: str
    parameters: int
    recipe: Recipe
    planned: Sequence[Run]
    data: Mapping[str, TaskData]
    results: Mapping[Run, Result]
    failures: Mapping[Run, str]
    notes: Sequence[str] = field(default_factory=list)

    def ordered(self) -> list[Result]:
        """Results task by task, in the order of ``data``, whatever order the runs had."""
        tasks = list(self.data)
        place = {run: number for number, run in enumerate(self.planned)}
        return sorted(self.results.values(), key=lambda r: (tasks.index(r.run.task), place[r.run]))

    def lines(self) -> list[Line]:
        grouped = records.by_task(self.ordered())
        failed = [run for run in self.planned if run in self.failures]
        return [
            line
            for task, mine in grouped.items()
            for line in lines(mine, [run for run in failed if run.task == task], self.data[task], self.recipe)
        ]


def write(report: Report, out: Path) -> str:
    """Write both files; returns the table."""
    rows = [json.dumps(records.record(result, report.recipe.select), ensure_ascii=False) for result in report.ordered()]
    write_text(out / "results.jsonl", "".join(f"{row}\n" for row in rows))
    text = render(report)
    write_text(out / "table.md", text)
    return text


def render(report: Report) -> str:
    """The table as Markdown."""
    found = report.lines()
    parts = [f"`{report.command}`", _facts(report), _table(found)]
    main = [line for line in found if line.main]
    if main:
        parts.append(_average(main, report))
    marks = [_MARKS[mark] for mark in _MARKS if any(mark in _mark(line) for line in found)]
    parts.append("\n".join([_EXPLANATION, *marks]))
    if report.failures:
        failed = [f"- {run.title}: {report.failures[run]}" for run in report.planned if run in report.failures]
        parts.append("Runs that failed:\n\n" + "\n".join(failed))
    grid = grid_medians(records.by_task(report.ordered()), report.recipe.select)
    if grid:
        parts.append(
            "Medians over the seeds, setting by setting:\n\n" + "\n".join(_grid(*item) for item in grid.items())
        )
    notes = [*report.notes, *(note for data in report.data.values() for note in data.notes)]
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def _facts(report: Report) -> str:
    done, planned = len(report.results), len(report.planned)
    state = "" if done == planned else f" **{done} of {planned} runs are done.**"
    rows = ", ".join(f"{task} {data.rows['train']:,}" for task, data in report.data.items())
    return (
        f"Checkpoint `{report.checkpoint}` ({report.parameters:,} parameters), recipe {report.recipe.name}: "
        f"{report.recipe.about or 'a recipe of your own.'} Training rows: {rows}.{state}"
    )


def _table(found: Sequence[Line]) -> str:
    rows = [
        "| task | score on the development set | median | lowest to highest | best constant answer | runs ever above it | rows | |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for line in found:
        bold = "**" if line.main else ""
        rows.append(
            f"| {line.label} | {METRICS[line.metric]} | {bold}{line.median:.1f}{bold} | "
            f"{min(line.values):.1f} to {max(line.values):.1f} | {line.baseline:.1f} | "
            f"{f'{line.left} of {len(line.values)}' if line.main else ''} | {line.rows:,} | {_mark(line)} |"
        )
    return "\n".join(rows)


def _mark(line: Line) -> str:
    marks = []
    if line.main and line.collapsed:
        marks.append("⚠ collapsed")
    elif line.main and line.left < len(line.values):
        marks.append(f"⚠ {len(line.values) - line.left} collapsed")
    if line.main and line.within_noise:
        marks.append("≈ chance")
    if line.main and line.failed:
        marks.append(f"✗ {line.failed} failed")
    return ", ".join(marks)


_EXPLANATION = (
    "Bold: the score that runs are chosen by. Best constant answer: what one and the same answer for every row scores "
    "(the majority class; always yes for F1; 0 for a correlation)."
)
_MARKS = {
    "⚠": (
        "⚠ Collapsed runs were never better than a constant answer, at no validation: they say nothing about the model. "
        "Try a lower learning rate, a longer warm-up or other seeds."
    ),
    "≈": "≈ The median is within two standard errors of the constant answer: too few rows to tell it from chance.",
    "✗": "✗ Failed runs have no score; the same command tries them again.",
}


def _average(main: Sequence[Line], report: Report) -> str:
    tasks = list(dict.fromkeys(line.task for line in main))
    over = "columns (the two MNLI sets count singly)" if report.recipe.average == "columns" else "tasks"
    value = average(main, report.recipe)
    benchmark = [task for task in tasks if task != "WNLI"]
    part = (
        f"only {len(benchmark)} of GLUE's {GLUE_SIZE} tasks, so it is not comparable with published GLUE scores"
        if len(benchmark) < GLUE_SIZE
        else f"all {GLUE_SIZE} tasks without WNLI, on development sets"
    )
    return f"Mean over these {over}: **{value:.1f}** ({', '.join(tasks)}: {part})."


def _grid(task: str, medians: Sequence[tuple[str, float]]) -> str:
    return f"- {task}: " + ", ".join(f"{setting} {median:.1f}" for setting, median in medians)
