"""A tiny pretrained checkpoint and a tiny GLUE directory, made of the words ``w00`` ... ``w39``."""

from __future__ import annotations

import random
from pathlib import Path

from tests.common import run_command, tiny_data_bin

WORDS = [f"w{number:02d}" for number in range(40)]
HIGH = set(WORDS[20:])


def tiny_checkpoint(directory: Path) -> Path:
    """A masked-LM checkpoint of one layer after two updates, with its ``dict.txt`` beside the data."""
    data = tiny_data_bin(directory / "data-bin")
    flags = (
        "--cpu --task masked_lm --criterion masked_lm --arch roberta --encoder-layers 1 --encoder-embed-dim 16 "
        "--encoder-ffn-embed-dim 32 --encoder-attention-heads 2 --max-positions 40 --tokens-per-sample 40 --optimizer adam "
        "--lr 0.001 --max-update 2 --batch-size 4 --num-workers 0 --log-format none --no-epoch-checkpoints "
        "--no-save-optimizer-state --no-last-checkpoints --save-dir"
    ).split()
    run_command("train", "data-bin", *flags, "checkpoints", cwd=directory, timeout=900)
    assert (data / "dict.txt").is_file()
    return directory / "checkpoints" / "checkpoint_best.pt"


def _sentence(rng: random.Random, high: bool) -> str:
    """Words of the upper half of the alphabet, or of the lower."""
    pool = WORDS[20:] if high else WORDS[:20]
    return " ".join(rng.choice(pool) for _ in range(rng.randint(3, 8)))


def tiny_glue(directory: Path, rows: int = 48, seed: int = 1) -> Path:
    """``CoLA`` (acceptable: high words), ``RTE`` (entailment: both high or both low) and ``STS-B`` (5 or 0 likewise)."""
    rng = random.Random(seed)
    for task in ("CoLA", "RTE", "STS-B"):
        (directory / task).mkdir(parents=True)
    for split, count in (("train", rows), ("dev", 20), ("test", 10)):
        cola, rte, sts = [], ["index\tsentence1\tsentence2\tlabel"], ["\t".join([*"abcdefg", "s1", "s2", "score"])]
        if split == "test":
            cola = ["index\tsentence"]
            rte[0], sts[0] = rte[0].removesuffix("\tlabel"), sts[0].removesuffix("\tscore")
        for row in range(count):
            first, second = rng.random() < 0.5, rng.random() < 0.5
            one, two, same = _sentence(rng, first), _sentence(rng, second), first == second
            label = "" if split == "test" else "\tentailment" if same else "\tnot_entailment"
            score = "" if split == "test" else "\t5.000" if same else "\t0.000"
            cola.append(f"{row}\t{one}" if split == "test" else f"x\t{int(first)}\t\t{one}")
            rte.append(f"{row}\t{one}\t{two}{label}")
            sts.append("\t".join([str(row), *"bcdefg", one, two]) + score)
        for task, lines in (("CoLA", cola), ("RTE", rte), ("STS-B", sts)):
            (directory / task / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory
