"""The quickstart's training: its flags, how long it may be on this machine, and what to say of one cut short."""

from __future__ import annotations

from commands import Progress, Speed, duration, run
from directory import RunDirectory

# Small enough for minutes on two cores: few layers, short blocks, small batches, a high learning rate, 25 % masked, and
# ALiBi in place of learned positions, which from so little text would still be at word frequencies.
MODEL = {
    "--arch": "roberta_alibi",
    "--encoder-layers": 4,
    "--encoder-embed-dim": 256,
    "--encoder-ffn-embed-dim": 1024,
    "--encoder-attention-heads": 4,
    "--max-positions": 128,
    "--dropout": 0.1,
    "--attention-dropout": 0.0,
}
TRAINING = {
    "--task": "masked_lm",
    "--criterion": "masked_lm",
    "--sample-break-mode": "none",
    "--tokens-per-sample": 128,
    "--mask-prob": 0.25,
    "--batch-size": 8,
    "--optimizer": "adam",
    "--adam-betas": "(0.9, 0.98)",
    "--adam-eps": 1e-6,
    "--weight-decay": 0.01,
    "--clip-norm": 1.0,
    "--lr-scheduler": "polynomial_decay",
    "--lr": 2e-3,
}
UPDATES, WARMUP = 900, 80
TRIAL_UPDATES, TRIAL_SECONDS = 20, 20  # a trial to see how fast the machine is: at most so long
ENOUGH = 400  # with fewer (250, measured) the model knows little more than how often each piece occurs


def flags(*tables: dict[str, object]) -> list[object]:
    return [word for table in tables for pair in table.items() for word in pair]


def arguments(home: RunDirectory, updates: int, options: dict[str, object]) -> list[object]:
    """Those of fairseq-train, with a learning rate that rises and falls over ``updates``."""
    schedule = {"--warmup-updates": max(1, updates * WARMUP // UPDATES), "--total-num-update": updates}
    places = {"--save-dir": home.checkpoints, "--log-format": "json", "--num-workers": 0}
    return [home.data, *flags(MODEL, TRAINING, schedule, places, options)]


def plan(home: RunDirectory, wanted: int, minutes: float) -> None:
    """Choose how many updates to train: those wanted, or as many as the machine does in ``minutes``."""
    updates = wanted
    if wanted > TRIAL_UPDATES:
        print("\ntiming a few updates ...", flush=True)
        speed = updates_a_second(home)
        # A tenth of the time is for validation and checkpoints.
        updates = max(TRIAL_UPDATES, round(0.9 * speed * minutes * 60))
        updates = wanted if updates > 0.9 * wanted else updates  # nearly all of them: not worth a warning
        takes = duration(updates / speed / 0.9)
        if updates == wanted:
            says = f"{updates} updates take about {takes}"
        else:
            says = f"shortened from {wanted} to {updates} updates, about {takes} (--minutes {minutes:g} allows no more)"
        print(f"this machine does {speed:.2g} updates per second now: {says}", flush=True)
        if updates < min(wanted, ENOUGH):
            print("That is too few for a good model: try a less busy machine, or --restart --minutes 30.", flush=True)
    home.note(wanted=wanted, updates=updates)


def updates_a_second(home: RunDirectory) -> float:
    """From a short training, which is thrown away."""
    limits = {"--max-update": TRIAL_UPDATES, "--stop-time-hours": TRIAL_SECONDS / 3600, "--log-interval": 1}
    trial = [*arguments(home, UPDATES, limits), "--no-save", "--disable-validation"]
    speed = Speed()
    run(home.log, "train", *trial, see=speed, quiet=True)
    return speed.mean()


def train(home: RunDirectory, minutes: float) -> None:
    """Train, or go on from the last checkpoint; notes how many updates are done."""
    updates = home.state["updates"]
    # Time for twice what was planned, if the machine gets slower. fairseq-train counts the time of earlier runs too.
    home.note(minutes=home.state.get("minutes", 0) + 2 * minutes)
    options = {
        "--max-update": updates,
        "--stop-time-hours": round(home.state["minutes"] / 60, 6),
        "--save-interval-updates": max(
            20, updates // 9
        ),  # validates as often, each time on a part of the held-out text
        "--keep-interval-updates": 1,
        "--max-valid-steps": 8,
        "--tensorboard-logdir": home.path / "tensorboard",
        "--log-interval": max(1, updates // 100),
    }
    progress = Progress(updates)
    run(home.log, "train", *arguments(home, updates, options), "--no-epoch-checkpoints", see=progress)
    home.note(done=progress.done if progress.out_of_time else updates)


def caveat(home: RunDirectory) -> str:
    """What a reader must know of a run that was cut short; empty for a whole one."""
    wanted, updates, done = (home.state[name] for name in ("wanted", "updates", "done"))
    if done < updates:
        return f"CUT SHORT: time was up after {done} of {updates} updates. The same command again goes on from there."
    if updates < wanted:
        return (
            f"SHORTENED: {updates} updates in place of {wanted}, so these results are worse than a whole run's.\n"
            "For a whole one: --restart on a less busy machine, or --restart --minutes 30."
        )
    return ""
