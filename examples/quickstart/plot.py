"""Draw the training and validation loss of a run from its tensorboard logs."""

from __future__ import annotations

from pathlib import Path

COLOURS = {"train_inner": ("#9ecae1", "training"), "valid": ("#d62728", "validation")}
FEWEST_POINTS = 5


def plot_losses(logs: Path, picture: Path, title: str) -> bool:
    """Write ``picture`` (PNG) from the subdirectories ``train_inner`` and ``valid`` of ``logs``.

    A curve needs a few points: returns False, and draws nothing, when there are fewer.
    """
    curves = {name: read_losses(logs / name) for name in COLOURS}
    if len(curves["train_inner"][0]) < FEWEST_POINTS:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, (colour, label) in COLOURS.items():
        steps, losses = curves[name]
        axes.plot(steps, losses, color=colour, label=label, marker="o" if name == "valid" else None, markersize=3)
    axes.set(xlabel="update", ylabel="loss (bits per masked piece)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)
    return True


def read_losses(directory: Path) -> tuple[list[int], list[float]]:
    """Updates and values of the scalar ``loss`` among the event files of ``directory``."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not directory.is_dir():  # a run that ended before its first line
        return [], []
    events = EventAccumulator(str(directory))
    events.Reload()
    points = events.Scalars("loss") if "loss" in events.Tags()["scalars"] else []
    return [point.step for point in points], [point.value for point in points]
