"""``table.png``: a bar a task with the spread over the seeds, each beside the best constant answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fairseq.finetuning.scores import METRICS, Line

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
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _short(line: Line) -> str:
    names = {"acc_and_f1": "accuracy, F1", "mcc": "Matthews", "pearson_and_spearman": "Pearson, Spearman"}
    return names.get(line.metric, METRICS[line.metric])
