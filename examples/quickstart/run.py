"""The five-minute tour: text -> BPE -> binary data -> a small RoBERTa -> filled masks, with the real commands.

``make quickstart`` runs it; so does ``python examples/quickstart/run.py`` where fairseq is installed. Everything it
makes is in ``examples/quickstart/run``; a second run goes on from there, or shows the results again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import corpus
from commands import answers, duration, run
from directory import ForeignDirectory, RunDirectory
from training import UPDATES, caveat, flags, plan, train

HERE = Path(__file__).resolve().parent
BOOKS = sorted((HERE / "books").glob("*.txt"))
VOCABULARY = 4000
PROMPTS = (
    "Alice looked at the Queen, and the Queen looked <mask> her.",
    "Once upon a <mask> there was a little girl.",
    "Father <mask> looked at him with his round eyes.",
    "Buster Bear was very <mask> of himself.",
    '"I don\'t <mask> what you mean," said Alice.',
)


def bpe_flags(home: RunDirectory) -> list[object]:
    return ["--bpe", "hf_byte_bpe", "--bpe-vocab", home.path / "vocab.json", "--bpe-merges", home.path / "merges.txt"]


def prepare(home: RunDirectory) -> None:
    """Split the books, learn the BPE, make the binary data."""
    train_text, valid_text = home.path / "train.txt", home.path / "valid.txt"
    kept, held_out = corpus.write_split(BOOKS, train_text, valid_text)
    corpus.train_bpe(train_text, home.path, VOCABULARY)
    print(f"{len(BOOKS)} books: {kept} stories and chapters for training, {held_out} held out", flush=True)
    files = {"--trainpref": train_text, "--validpref": valid_text, "--destdir": home.data, "--workers": 2}
    run(home.log, "preprocess", "--only-source", *bpe_flags(home), *flags(files))
    home.note(prepared=True)


def show(home: RunDirectory) -> None:
    """Fill masks and compare with the unigram model on held-out masks; what is shown is kept in ``results.txt``."""
    shown: list[str] = []

    def tell(line: str) -> None:
        shown.append(line)
        print(line, flush=True)

    if warning := caveat(home):
        tell(f"\n{warning.splitlines()[0]}")
    checkpoint = home.checkpoints / "checkpoint_best.pt"
    question = ["--path", checkpoint, "--data", home.data, *bpe_flags(home), "--topk", 3, *PROMPTS]
    run(home.log, "fill-mask", *question, see=partial(answers, tell=tell))
    compare(home, tell)
    home.results.write_text("\n".join(shown) + "\n", encoding="utf-8")


def compare(home: RunDirectory, tell: Callable[[str], None]) -> None:
    """Load the model in Python; a table of it and the unigram model, and a picture of the loss."""
    # Only now: the steps before run in processes of their own, and this one should not hold torch beside them.
    from evaluate import held_out
    from plot import plot_losses

    from fairseq.models.roberta import RobertaModel

    bpe = {
        "bpe": "hf_byte_bpe",
        "bpe_vocab": str(home.path / "vocab.json"),
        "bpe_merges": str(home.path / "merges.txt"),
    }
    hub = RobertaModel.from_pretrained(
        str(home.checkpoints), "checkpoint_best.pt", data_name_or_path=str(home.data), mask_prob=0.15, **bpe
    )
    ours, unigram = held_out(hub, home.data)
    updates, warning = home.state["done"], caveat(home)
    tell(f"\nHeld-out masks ({ours.count:,} pieces)    perplexity    right among the first 5")
    for name, score in (("unigram model", unigram), (f"this model ({updates} updates)", ours)):
        tell(f"  {name:<30} {score.perplexity:>12.1f} {score.top5:>20.1%}")
    if ours.perplexity >= unigram.perplexity:
        tell(
            f"NOT BETTER than the unigram model: {updates} updates were too few to learn more than how often each piece "
            "occurs.\nThese figures and the filled masks say nothing about fairseq or RoBERTa yet."
        )
    if warning:
        tell(warning)
    title = f"fairseq quickstart, {updates} updates" + (f" ({warning.split(':')[0].lower()})" if warning else "")
    picture, logs = home.path / "loss.png", home.path / "tensorboard"
    drawn = plot_losses(logs, picture, title)
    tell(f"\nloss: {picture if drawn else 'too few points for a picture'}    logs: tensorboard --logdir {logs}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="The same command again goes on with an unfinished run, and shows the results of a finished one.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=HERE / "run",
        metavar="DIR",
        help="directory for everything that is made: new, empty, or of an earlier quickstart (default: %(default)s)",
    )
    parser.add_argument(
        "--max-update",
        type=positive(int),
        metavar="N",
        help=f"training updates (default: {UPDATES}; fewer if they would take longer than --minutes)",
    )
    parser.add_argument(
        "--minutes",
        type=positive(float),
        default=6.0,
        metavar="M",
        help="how long training may take: decides how many updates there are (default: %(default)g)",
    )
    parser.add_argument(
        "--restart", action="store_true", help="start anew: delete what an earlier quickstart made in DIR, nothing else"
    )
    return parser.parse_args()


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value < 1e9:
            raise ValueError
        return value

    number.__name__ = f"positive {kind.__name__}"  # what argparse says it is not
    return number


def steps(home: RunDirectory, wanted: int | None, minutes: float) -> None:
    """Do what is not done yet."""
    state = home.state
    if wanted and wanted != state.get("wanted", wanted):
        sys.exit(
            f"quickstart: {home.path} has a run of {state['wanted']} updates: add --restart, or choose another --out"
        )
    if state.get("finished"):
        print(home.results.read_text(encoding="utf-8"))
        print(f"These are the results of the run in {home.path}; --restart starts anew.")
        return
    if "updates" in state:
        print(f"going on with the run of {state['updates']} updates in {home.path} (--restart starts anew)", flush=True)
    started = time.perf_counter()
    if "prepared" not in state:
        prepare(home)
    if "updates" not in state:
        plan(home, wanted or UPDATES, minutes)
    if state.get("done") != state["updates"]:
        train(home, minutes)
    show(home)
    home.note(finished=state["done"] == state["updates"])
    print(f"quickstart done in {duration(time.perf_counter() - started)}")


def main() -> None:
    args = parse_args()
    # Threads that wait without spinning: several times faster when other programs keep the processors busy.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    here, out = Path.cwd(), args.out.resolve()
    try:
        home = RunDirectory(out.relative_to(here) if out != here and out.is_relative_to(here) else out)
        if args.restart:
            home.clear()
        steps(home, args.max_update, args.minutes)
    except ForeignDirectory as error:
        sys.exit(f"quickstart: {error}")
    except KeyboardInterrupt:
        sys.exit("\nquickstart: interrupted; the same command goes on from the last checkpoint")


if __name__ == "__main__":
    main()
