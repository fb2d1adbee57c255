"""``table.md``, ``results.jsonl``, ``table.png``: every score beside the best constant answer, cuts included."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fairseq.file_io import complete_file
from fairseq.glue.data import TaskData
from fairseq.glue.files import replace_text
from fairseq.glue.plan import Run
from fairseq.glue.recipe import GridPoint, Recipe
from fairseq.glue.scores import METRICS, Line, Result, average, by_task, lines, medians, result_record

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
        runs = [run for task in self.data for run in self.planned if run.task == task]
        return [self.results[run] for run in runs if run in self.results]

    def lines(self) -> list[Line]:
        grouped = by_task(self.ordered())
        failed = [run for run in self.planned if run in self.failures]
        return [
            line
            for task, mine in grouped.items()
            for line in lines(mine, [run for run in failed if run.task == task], self.data[task], self.recipe)
        ]


def write_table(report: Report, out: Path) -> str:
    """Write both files; returns the table."""
    rows = [json.dumps(result_record(result, report.recipe.select), ensure_ascii=False) for result in report.ordered()]
    replace_text(out / "results.jsonl", "".join(f"{row}\n" for row in rows))
    text = render(report)
    replace_text(out / "table.md", text)
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
    grid = [_grid(task, medians(mine, report.recipe.select)) for task, mine in by_task(report.ordered()).items()]
    if any(grid):
        parts.append("Medians over the seeds, setting by setting:\n\n" + "\n".join(filter(None, grid)))
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
            f"{f'{line.beat_baseline} of {len(line.values)}' if line.main else ''} | {line.rows:,} | {_mark(line)} |"
        )
    return "\n".join(rows)


def _mark(line: Line) -> str:
    marks = []
    if line.main and line.collapsed:
        marks.append("⚠ collapsed")
    elif line.main and line.beat_baseline < len(line.values):
        marks.append(f"⚠ {len(line.values) - line.beat_baseline} collapsed")
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


def _grid(task: str, found: Mapping[GridPoint, float]) -> str:
    """The settings of a grid, best first; nothing without a grid."""
    ranked = sorted(found.items(), key=lambda item: -item[1]) if len(found) > 1 else []
    shown = [f"{' '.join(f'{key}={value}' for key, value in point)} {median:.1f}" for point, median in ranked]
    return f"- {task}: {', '.join(shown)}" if shown else ""


GOOD, COLLAPSED = "#4878a8", "#c8c8c8"


def draw(table: Sequence[Line], title: str, path: Path) -> None:
    """Bars to the median of the main scores, dots for the runs, a black stroke for the constant answer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    main = [line for line in table if line.main]
    figure, axes = pyplot.subplots(figsize=(max(5.0, 1.3 * len(main) + 1.5), 4.5), layout="constrained")
    for place, line in enumerate(main):
        low, high = line.median - min(line.values), max(line.values) - line.median
        axes.bar(
            place,
            line.median,
            width=0.6,
            color=COLLAPSED if line.collapsed else GOOD,
            hatch="//" if line.collapsed else None,
            yerr=[[low], [high]],
            capsize=5,
            ecolor="#333333",
        )
        shifts = [0.06 * (number - (len(line.values) - 1) / 2) for number in range(len(line.values))]
        axes.scatter([place + shift for shift in shifts], line.values, s=10, color="#1a2b3c", zorder=3)
        axes.hlines(
            line.baseline,
            place - 0.42,
            place + 0.42,
            color="black",
            linewidth=2.5,
            zorder=4,
            label="_" if place else "best constant answer",
        )
        axes.annotate(
            f"{line.median:.1f}",
            (place, max(*line.values, line.baseline, 0.0)),
            textcoords="offset points",
            xytext=(0, 5),
            ha="center",
            fontsize=9,
        )
    names = [f"{line.label}\n{_short(line)}" + ("\ncollapsed" if line.collapsed else "") for line in main]
    axes.set_xticks(range(len(main)), names, fontsize=8)
    axes.set_ylabel("score on the development set")
    axes.set_ylim(min([0.0, *(min(line.values) for line in main)]), 108.0)
    axes.set_title(title, fontsize=9)
    figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with complete_file(path, "wb") as file:
        figure.savefig(file, dpi=120)
    pyplot.close(figure)


def _short(line: Line) -> str:
    names = {"acc_and_f1": "accuracy, F1", "mcc": "Matthews", "pearson_and_spearman": "Pearson, Spearman"}
    return names.get(line.metric, METRICS[line.metric])
