"""What is made of the figures of `train_throughput.py`: operations of an update, rows of the table, and the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common


@dataclass(frozen=True)
class Setup:
    """Model and batch; `tokens` counts the positions of a sample, bos included."""

    layers: int
    width: int
    heads: int
    ffn: int
    vocabulary: int
    tokens: int
    batch: int
    dropout: float
    updates: int
    skip: int
    num_workers: int = 1
    mask_prob: float = 0.15

    @property
    def name(self) -> str:
        return f"{self.layers}x{self.width}, {self.tokens} tokens x {self.batch}"

    @property
    def operations(self) -> float:
        """Of the matrix products that one update needs, forward and both gradients.

        The head is on masked positions only, and so is the last layer but for its keys and values.
        """
        positions = self.batch * self.tokens
        keys_and_values = 2 * self.width**2
        rest = 2 * self.width**2 + 2 * self.width * self.ffn + 2 * self.tokens * self.width
        head = self.width**2 + self.width * self.vocabulary
        everywhere = self.layers * keys_and_values + (self.layers - 1) * rest
        return 6.0 * positions * (everywhere + self.mask_prob * (rest + head))


@dataclass
class Run:
    """Figures of one process."""

    tokens_per_second: float
    cpu_per_update: float
    peak_mib: float
    waiting: float
    seconds: float


@dataclass(frozen=True)
class Contestant:
    """Who trains, in which precision, with whose memory: `shipped`, `default` or `tuned`."""

    who: str
    precision: str
    allocator: str

    @property
    def name(self) -> str:
        return f"{self.who}-{self.precision}"

    @property
    def environment(self) -> dict[str, str]:
        if self.who == "ours":
            return {"FAIRSEQ_MALLOC": "default" if self.allocator == "default" else "tuned"}
        return common.TUNED_ALLOCATOR if self.allocator == "tuned" else {}


Results = Mapping[Contestant, Sequence[Run]]


def table(setup: Setup, results: Results, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """One row a contestant. `rates`: operations a second by type; ratios of medians against the original's float32.

    The floor of bf16 is that of the quicker type: products may be made of float32 copies.
    """
    speed = {one: common.median([run.tokens_per_second for run in runs]) for one, runs in results.items()}
    floors = {"fp32": rates["float32"], "bf16": max(rates.values())}
    rows = []
    for one, runs in results.items():
        original = speed.get(Contestant("original", "fp32", one.allocator))
        same = speed.get(Contestant("transformers", one.precision, one.allocator))
        floor = setup.batch * setup.tokens * floors[one.precision] / setup.operations
        rows.append(
            {
                "setup": setup.name,
                "allocator": one.allocator,
                "contestant": one.who,
                "precision": one.precision,
                "tokens/s": speed[one],
                "min-max": common.spread([run.tokens_per_second for run in runs]),
                "x original fp32": speed[one] / original if original else None,
                "x transformers": speed[one] / same if same else None,
                "floor tokens/s": float(round(floor)),
                "of floor": speed[one] / floor,
                "CPU s/update": common.median([run.cpu_per_update for run in runs]),
                "waiting %": 100 * common.median([run.waiting for run in runs]),
                "peak MiB": float(round(common.median([run.peak_mib for run in runs]))),
            }
        )
    return rows


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Bars of tokens per second, one panel a setup and allocator; the mark is the floor."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        panels.setdefault((row["setup"], row["allocator"]), []).append(row)
    colours = {"ours": "#2a7f62", "original": "#b5651d", "transformers": "#7a7a9d"}
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.6 * columns, 3.2 * lines), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, ((setup, allocator), panel) in zip(axes.flat, panels.items(), strict=False):
        labels = [f"{row['contestant']}\n{row['precision']}" for row in panel]
        bars = axis.bar(labels, [row["tokens/s"] for row in panel], color=[colours[row["contestant"]] for row in panel])
        axis.bar_label(bars, fmt="{:.0f}", fontsize=8)
        for place, row in enumerate(panel):
            axis.hlines(row["floor tokens/s"], place - 0.4, place + 0.4, colors="black", linestyles=":", linewidth=1)
        axis.set_title(f"{setup}\nallocator: {allocator}", fontsize=9)
        axis.tick_params(labelsize=7)
        axis.set_ylabel("tokens/s (dots: floor)", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
