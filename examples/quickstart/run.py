"""The five-minute tour: text -> BPE -> binary data -> a small RoBERTa -> filled masks, with the real commands.

``make quickstart`` runs it; so does ``python examples/quickstart/run.py`` where fairseq is installed. Everything it
makes is in ``examples/quickstart/run``, which each run replaces.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import corpus

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
STOP_AFTER_HOURS = 0.07  # on a machine that is too slow for all updates


def command(name: str, *arguments: object) -> list[str]:
    """The command line of ``fairseq-<name>``: the installed script, or the module where it is not installed."""
    script = Path(sys.executable).parent / f"fairseq-{name}"
    start = [str(script)] if script.exists() else [sys.executable, "-m", "fairseq.cli." + name.replace("-", "_")]
    return [*start, *map(str, arguments)]


def run(name: str, *arguments: object) -> None:
    """Show the command and run it; its output goes to the terminal."""
    print(f"\n$ {shlex.join([f'fairseq-{name}', *map(str, arguments)])}", flush=True)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(command(name, *arguments), env=environment)
    if done.returncode:
        sys.exit(f"quickstart: fairseq-{name} ended with exit code {done.returncode}")


def flags(*tables: dict[str, object]) -> list[object]:
    return [word for table in tables for pair in table.items() for word in pair]


def prepare(out: Path) -> tuple[Path, list[object]]:
    """Split the books, learn the BPE, make the binary data; returns its directory and the flags of the BPE."""
    started = time.perf_counter()
    train, valid = out / "train.txt", out / "valid.txt"
    kept, held_out = corpus.write_split(BOOKS, train, valid)
    vocab, merges = corpus.train_bpe(train, out, VOCABULARY)
    print(f"{len(BOOKS)} books: {kept} stories and chapters for training, {held_out} held out", flush=True)
    bpe: list[object] = ["--bpe", "hf_byte_bpe", "--bpe-vocab", vocab, "--bpe-merges", merges]
    data = out / "data-bin"
    run(
        "preprocess",
        "--only-source",
        *bpe,
        "--trainpref",
        train,
        "--validpref",
        valid,
        "--destdir",
        data,
        "--workers",
        2,
    )
    print(f"data ready after {time.perf_counter() - started:.0f} s")
    return data, bpe


def train(out: Path, data: Path, updates: int) -> None:
    """Train with a progress bar, writing checkpoints and tensorboard logs."""
    schedule = {
        "--warmup-updates": max(1, updates * WARMUP // UPDATES),
        "--total-num-update": updates,
        "--max-update": updates,
        "--stop-time-hours": STOP_AFTER_HOURS,
    }
    keep = {
        "--save-dir": out / "checkpoints",
        "--tensorboard-logdir": out / "tensorboard",
        "--log-format": "tqdm" if sys.stderr.isatty() else "simple",
        "--log-interval": max(1, min(updates // 20, 20 if sys.stderr.isatty() else 100)),
        "--num-workers": 0,
        "--validate-interval": 2,
    }
    run("train", data, *flags(MODEL, TRAINING, schedule, keep), "--no-epoch-checkpoints")


def show(out: Path, data: Path, bpe: list[object]) -> None:
    """Fill masks, on the command line and in Python, and compare with the unigram model on held-out masks."""
    # Only now: the steps before run in processes of their own, and this one should not hold torch beside them.
    from evaluate import held_out
    from plot import plot_losses

    from fairseq.models.roberta import RobertaModel

    checkpoint = out / "checkpoints" / "checkpoint_best.pt"
    run("fill-mask", "--path", checkpoint, "--data", data, *bpe, "--topk", 3, *PROMPTS)
    options = {"bpe_vocab": str(bpe[3]), "bpe_merges": str(bpe[5]), "mask_prob": 0.15}
    hub = RobertaModel.from_pretrained(
        str(checkpoint.parent), checkpoint.name, data_name_or_path=str(data), bpe="hf_byte_bpe", **options
    )
    ours, unigram = held_out(hub, data)
    print(f"\nHeld-out masks ({ours.count:,} pieces)    perplexity    right among the first 5")
    for name, score in (("unigram model", unigram), ("this model", ours)):
        print(f"  {name:<30} {score.perplexity:>12.1f} {score.top5:>20.1%}")
    picture = plot_losses(out / "tensorboard", out / "loss.png")
    print(f"\nloss: {picture}    logs: tensorboard --logdir {out / 'tensorboard'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "run", help="directory to make (replaced if it is there)")
    parser.add_argument("--max-update", type=int, default=UPDATES, help="training updates (default: %(default)s)")
    args = parser.parse_args()
    out = args.out.resolve()
    started = time.perf_counter()
    if (out / "data-bin").exists():  # made by an earlier run
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    data, bpe = prepare(out)
    train(out, data, args.max_update)
    show(out, data, bpe)
    print(f"quickstart done in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
