"""Kill trainings again and again, go on with the same command, and compare with undisturbed runs, to the last bit.

    python -m tests.faults.kills --count 200 --seed 1 [--cases sync async ...] [--details out.jsonl]

Kills come at moments chosen by time and by call (the n-th write, fsync, rename or deletion of the process, before, after or
half-way through), and signals that ask a run to end are mixed in. After each one: the newest checkpoint is readable, and no
older than the last one that was in place; every other checkpoint is readable too; only the process just killed has left a
temporary file. Every update of the run that goes on has the sentences, the losses and the weights of the undisturbed run,
and the last checkpoints are the same. The status is 1 when one of these does not hold.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.faults import warm
from tests.faults.warm import Child, Event, Strike

INTERRUPTED = 75  # what a run ends with that has saved because of a signal
SIGNALS = ("SIGTERM", "SIGUSR1", "SIGHUP")
HANG_SECONDS = 120.0
ORPHANS_SECONDS = 30.0  # in which data workers notice that they have no parent any more
MOST_KILLS = 15  # of one training, which then ends undisturbed
UPDATES = 20

MODEL = (
    "--cpu --task masked_lm --criterion masked_lm --arch roberta --encoder-layers 1 --encoder-embed-dim 32 "
    "--encoder-ffn-embed-dim 64 --encoder-attention-heads 2 --max-positions 40 --tokens-per-sample 40 "
    "--sample-break-mode eos --optimizer adam --lr 0.005 --lr-scheduler polynomial_decay --warmup-updates 4 "
    f"--total-num-update 40 --max-update {UPDATES} --batch-size 6 --seed 7 --log-format json --log-interval 1"
).split()
CASES = {
    "sync": "--num-workers 0 --save-interval-updates 1 --keep-interval-updates 2",
    "workers": "--num-workers 2 --save-interval-updates 2 --keep-last-epochs 1 --keep-best-checkpoints 2",
    "async": "--num-workers 0 --write-checkpoints-asynchronously --save-interval-updates 1 --keep-interval-updates 3 "
    "--store-ema --ema-decay 0.9",
    "async-workers": "--num-workers 1 --write-checkpoints-asynchronously --save-interval-updates 2 --update-freq 2 "
    "--batch-ramp-updates 6 --keep-interval-updates 1 --keep-last-epochs 1",
    "bf16": "--num-workers 0 --bf16 --save-interval-updates 3 --keep-interval-updates 1 --keep-best-checkpoints 1 "
    "--no-epoch-checkpoints --max-valid-steps 2",
    "epochs": "--num-workers 0 --disable-validation --keep-last-epochs 2 --update-freq 2",
}


@dataclass
class Undisturbed:
    """What a training does when nothing happens to it."""

    words: list[str]
    updates: dict[int, Event]
    final: dict[str, Any]
    calls: Counter[str]
    seconds: float


@dataclass
class Fault:
    """One kill or signal, and what came of it."""

    case: str
    kind: str
    phase: str
    lost: int  # updates that have to be made again
    status: int | None
    complaints: list[str] = field(default_factory=list)


# -- running ----------------------------------------------------------------------------------------------------------


def make_data(folder: Path) -> Path:
    from tests.common import tiny_data_bin

    return tiny_data_bin(folder / "data-bin", {"train": 70, "valid": 12}, per_document=0)


def undisturbed(case: str, data: Path, folder: Path) -> Undisturbed:
    folder.mkdir()
    words = [str(data), *MODEL, *CASES[case].split()]
    child = warm.start(words, folder)
    if child.wait(HANG_SECONDS) != 0:
        raise RuntimeError(f"the undisturbed run of {case} ended with {child.status}: {child.said[-3000:]}")
    seconds = time.monotonic() - child.started
    events = child.events
    updates = {event["updates"]: _made(event) for event in events if event["event"] == "update"}
    assert list(updates) == list(range(1, UPDATES + 1))
    calls = Counter(event["name"] for event in events if event["event"] == "call")
    return Undisturbed(words, updates, final_state(folder), calls, seconds)


def _made(event: Event) -> Event:
    return {key: event[key] for key in ("ids", "loss", "weights")}


def final_state(folder: Path) -> dict[str, Any]:
    """What is in the checkpoints by their names, without clocks and the history of runs."""
    return {path.name: _state(path) for path in sorted((folder / "checkpoints").glob("*.pt"))}


def _last_alone(states: dict[str, Any]) -> dict[str, Any]:
    last = states["checkpoint_last.pt"]
    extra = {key: value for key, value in last["extra_state"].items() if key not in ("best", "val_loss")}
    return {"checkpoint_last.pt": {**last, "extra_state": extra}}


def _state(path: Path) -> dict[str, Any]:
    from fairseq.checkpoint.reader import read

    state = read(path, with_config=False)
    extra = {k: v for k, v in state["extra_state"].items() if k not in ("metrics", "previous_training_time")}
    weights, optimizer, history = (state[key] for key in ("model", "last_optimizer_state", "optimizer_history"))
    return {"model": weights, "optimizer": optimizer, "last": history[-1], "extra_state": extra}


def differing(a: Any, b: Any, place: str = "") -> Iterator[str]:
    """The places in which the nested values ``a`` and ``b`` of tensors and plain values are not the same."""
    import torch

    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from differing(a[key], b[key], f"{place}.{key}")
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for number, (left, right) in enumerate(zip(a, b, strict=True)):
            yield from differing(left, right, f"{place}.{number}")
    elif not (torch.equal(a, b) if torch.is_tensor(a) and torch.is_tensor(b) else a == b):
        yield place


# -- judging ----------------------------------------------------------------------------------------------------------


def newest_updates(folder: Path, complaints: list[str]) -> int:
    """The updates in the checkpoint that the next run will take; all others have to be readable too."""
    from fairseq.checkpoint.reader import read
    from fairseq.checkpoint.store import resumable
    from fairseq.training.run import newest

    directory = folder / "checkpoints"
    paths = resumable(SimpleNamespace(save_dir=str(directory), resume="auto"))
    kept = map(str, directory.glob("checkpoint.best_*.pt")) if directory.exists() else ()
    for path in (*paths, *kept):
        try:
            read(path)
        except Exception as error:
            complaints.append(f"{Path(path).name} cannot be read: {error}")
            return -1
    return read(newest(paths), with_config=False)["optimizer_history"][-1]["num_updates"] if paths else 0


def phase_of(events: Sequence[Event]) -> str:
    """What a run was doing at the end of ``events``."""
    kinds = [event["event"] for event in events]
    if "begin" not in kinds:
        return "startup"
    if "end" in kinds:
        return "ended"
    last = next((number for number in reversed(range(len(kinds))) if kinds[number] in ("save", "prune", "saved")), None)
    if last is None or kinds[last] == "saved":
        return "training"
    if kinds[last] == "prune":
        return "deleting"
    return "renaming" if any(event.get("name") == "replace" for event in events[last:]) else "saving"


def updates_in_place(events: Sequence[Event]) -> int:
    """The updates of the last save whose first file was in place."""
    saving = done = 0
    for event in events:
        if event["event"] == "save":
            saving = event["updates"]
        elif event["event"] == "call" and event["name"] == "replace":
            done = saving
    return done


def compare(events: Sequence[Event], start: int, expected: dict[int, Event]) -> Iterator[str]:
    """What is wrong with a run that went on after ``start`` updates."""
    begun = next((event["updates"] for event in events if event["event"] == "begin"), None)
    if begun is not None and begun != start:
        yield f"it goes on from {begun} updates, not from {start}"
    made = [event for event in events if event["event"] == "update"]
    numbers = [event["updates"] for event in made]
    if numbers != list(range(start + 1, start + 1 + len(numbers))):
        yield f"after {start} updates it makes {numbers}"
    for event in made:
        for key, wanted in expected[event["updates"]].items():
            if event[key] != wanted:
                yield f"update {event['updates']} has other {key}: {event[key]}, not {wanted}"


def temporary_files(folder: Path) -> set[str]:
    """What is in the directory that no run wants to keep."""
    directory = folder / "checkpoints"
    return (
        {path.name for path in directory.iterdir() if path.suffix != ".pt" and path.name != ".lock"}
        if directory.exists()
        else set()
    )


def leftovers(before: set[str], after: set[str], child: Child) -> Iterator[str]:
    """Temporary files, but for one of ``child``; those of ``before`` go when it begins."""
    own = {name for name in after if name.endswith(f"-{child.pid}.tmp")}
    begun = any(event["event"] == "begin" for event in child.events)
    if len(own) > 1 or not after - own <= (set() if begun else before):
        yield f"{sorted(after)} are left, of {sorted(before)}"


# -- killing ----------------------------------------------------------------------------------------------------------


def chosen(rng: random.Random, case: Undisturbed) -> tuple[str, Strike | None, float]:
    """(kind, strike by call, seconds): of nine, three kills by time, five by call, and a signal by either."""
    way = rng.randrange(9)
    kind = rng.choice(SIGNALS) if way == 0 else "SIGKILL"
    if way < 4 and (way > 0 or rng.random() < 0.5):
        return kind if way == 0 else "kill at a time", None, rng.uniform(0, 0.6 * case.seconds)
    # In the first third of its calls, so that there are several faults in a training.
    name = rng.choice(sorted(case.calls))
    when = rng.choice(("before", "after", "half") if way > 0 else ("before", "after"))  # a half write needs a kill
    number = rng.randint(1, max(1, case.calls[name] // 3))
    return kind if way == 0 else f"kill at {name}", Strike(kind, number, (name,), when), HANG_SECONDS


def strike(rng: random.Random, case: Undisturbed, folder: Path) -> tuple[Child, str]:
    """One run that is killed or told to end, unless it ends before; returns it with the kind of the fault."""
    kind, by_call, seconds = chosen(rng, case)
    child = warm.start(case.words, folder, by_call)
    if child.wait(seconds) is None:
        group = rng.random() < 0.5
        if kind in SIGNALS:
            child.send(getattr(signal, kind), group)
            # Machines are taken away soon after.
            if child.wait(rng.choice((0.05, HANG_SECONDS, HANG_SECONDS))) is None:
                kind += " and kill"
        child.send(signal.SIGKILL, group)
        child.wait(HANG_SECONDS)
    return child, kind


def inspect(child: Child, start: int, case: Undisturbed, folder: Path) -> tuple[list[str], int, int]:
    """(complaints, updates that are stored now, updates lost) after a run that began at ``start`` updates."""
    events = child.events
    complaints = list(compare(events, start, case.updates))
    stored = newest_updates(folder, complaints)
    made = max([start, *(event["updates"] for event in events if event["event"] == "update")])
    if stored < max(start, updates_in_place(events)):
        complaints.append(f"{stored} updates are stored, although {updates_in_place(events)} were in place already")
    return complaints, stored, made - stored


def judge_ending(child: Child, kind: str, lost: int) -> Iterator[str]:
    """What is wrong with the way in which a run ended after a fault of this kind."""
    phase = phase_of(child.events)
    by_signal = {-getattr(signal, name) for name in SIGNALS if kind.startswith(name)}
    if child.status == INTERRUPTED and (not by_signal or lost):
        yield f"status {INTERRUPTED} after {kind}, {lost} updates lost"
    if child.status in by_signal and phase not in ("startup", "ended"):
        yield f"{kind} ended the run without saving"
    # Data workers whose parent was killed may complain.
    expected = child.status in {0, INTERRUPTED, -signal.SIGKILL, *by_signal}
    if not expected or ("Traceback" in child.said and child.status != -signal.SIGKILL):
        yield f"status {child.status}: {child.said[-1500:]}"


def same_end(child: Child, case: Undisturbed, folder: Path, signaled: bool = False) -> Iterator[str]:
    """What is wrong at the end of a training, compared with the undisturbed one.

    One that was ``signaled`` may have left out a validation, so that other checkpoints are its best.
    """
    if child.status != 0:
        yield f"it does not end: status {child.status}: {child.said[-1500:]}"
        return
    for name in temporary_files(folder):
        yield f"{name} is left"
    wanted, final = case.final, final_state(folder)
    if signaled:
        wanted, final = _last_alone(wanted), _last_alone(final)
    # A kill while old files are deleted leaves one of each kind until the next save deletes of that kind.
    if not wanted.keys() <= final.keys() or len(final) > len(wanted) + 3:
        yield f"there are {sorted(final)}, not {sorted(wanted)}"
    for name in wanted.keys() & final.keys():
        if places := list(differing(wanted[name], final[name])):
            yield f"{name} differs in {len(places)} places: {', '.join(places[:3])}"


def broken_training(name: str, rng: random.Random, case: Undisturbed, folder: Path) -> Iterator[Fault]:
    """The faults of one training, until it is over."""
    folder.mkdir()
    stored, signaled, children = 0, False, []
    for _ in range(MOST_KILLS):
        start, before = stored, temporary_files(folder)
        child, kind = strike(rng, case, folder)
        children.append(child)
        complaints, stored, lost = inspect(child, start, case, folder)
        complaints += judge_ending(child, kind, lost)
        signaled |= child.status == INTERRUPTED
        complaints += leftovers(before, temporary_files(folder), child)
        yield Fault(name, kind, phase_of(child.events), lost, child.status, complaints)
        if child.status == 0:
            break
    else:
        child = warm.start(case.words, folder)
        child.wait(HANG_SECONDS)
        complaints, _, _ = inspect(child, stored, case, folder)
    complaints = list(same_end(child, case, folder, signaled))
    complaints += [f"data workers of {child.pid} are left" for child in children if child.alive(ORPHANS_SECONDS)]
    yield Fault(name, "the end", "ended", 0, child.status, complaints)


def kills(count: int, seed: int, cases: Sequence[str], folder: Path) -> Iterator[Fault]:
    """At least ``count`` kills, spread over ``cases``; signals, and runs that end before their fault, come on top."""
    data = make_data(folder)
    known = {name: undisturbed(name, data, folder / name) for name in cases}
    done = training = 0
    while done < count:
        name = cases[training % len(cases)]
        rng = random.Random(f"{seed} {training}")
        for fault in broken_training(name, rng, known[name], folder / f"{name}-{training}"):
            done += fault.status == -signal.SIGKILL
            yield fault
        training += 1


def summary(faults: Sequence[Fault]) -> str:
    """A table: faults by phase and kind, and the updates that had to be made again."""
    phases = ("startup", "training", "saving", "renaming", "deleting", "ended")
    lines = [f"{'':<22}" + "".join(f"{phase:>10}" for phase in phases) + f"{'lost':>8}{'wrong':>8}"]
    for kind in sorted({fault.kind for fault in faults}):
        chosen = [fault for fault in faults if fault.kind == kind]
        counts = Counter(fault.phase for fault in chosen)
        numbers = "".join(f"{counts[phase]:>10}" for phase in phases)
        wrong = sum(bool(fault.complaints) for fault in chosen)
        lines.append(f"{kind:<22}{numbers}{sum(fault.lost for fault in chosen):>8}{wrong:>8}")
    return "\n".join(lines)


def report(faults: Iterator[Fault], details: Path | None) -> int:
    """Print what is wrong as it comes, then a table; returns 1 if something is."""
    found = []
    for fault in faults:
        found.append(fault)
        for complaint in fault.complaints:
            print(f"{fault.case}, {fault.kind}, {fault.phase}: {complaint}", flush=True)
        if details is not None:
            with details.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(fault)) + "\n")
    print(summary(found), flush=True)
    return 1 if any(fault.complaints for fault in found) else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kills", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="kills (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", nargs="*", choices=[*CASES, []], default=list(CASES), metavar="CASE")
    parser.add_argument("--details", type=Path, help="write every fault to this file, a line of JSON each")
    args = parser.parse_args(argv)
    warm.load_all()
    with tempfile.TemporaryDirectory() as folder:
        return report(kills(args.count, args.seed, args.cases, Path(folder)), args.details)


if __name__ == "__main__":
    sys.exit(main())
