"""Draws the attention table and the training speeds of a JSON file into a PNG."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpu_steps.goals import ok


def draw(source: Path) -> Path:
    """Write the picture of ``source`` beside it; returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = json.loads(source.read_text())
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(17, 5))
    for axes, dropout in ((left, 0.0), (middle, 0.1)):
        draw_attention(axes, ok(results["steps"], "attention"), dropout)
    draw_training(right, list(ok(results["steps"], "training")), results)
    name = results["steps"].get("machine", {}).get("device", {}).get("name", "")
    figure.suptitle(f"{name}{' (a dry run: figures mean nothing)' if results['dry_run'] else ''}")
    figure.tight_layout()
    target = source.with_suffix(".png")
    figure.savefig(target, dpi=110)
    return target


def draw_attention(axes: Any, rows: Any, dropout: float) -> None:
    rows = [row for row in rows if row["dropout"] == dropout and row["backward"]]
    for backend in dict.fromkeys(row["backend"] for row in rows):
        points = sorted((row["tokens"], row["TFLOP/s"]) for row in rows if row["backend"] == backend)
        axes.plot(*zip(*points, strict=True), marker="o", label=backend)
    axes.set_xscale("log", base=2)
    axes.set(title=f"Attention with ALiBi, dropout {dropout}", xlabel="tokens", ylabel="TFLOP/s, forward and backward")
    axes.set_ylim(bottom=0)
    if rows:
        axes.legend()


def draw_training(axes: Any, rows: list[Any], results: Any) -> None:
    labels = [f"{row['who']}\nT {row['tokens']}{', compiled' if row['compiled'] else ''}" for row in rows]
    axes.barh(range(len(rows)), [row["tokens/s"] for row in rows])
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set(title="Training of the base model, bf16", xlabel="tokens a second")
