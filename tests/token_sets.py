"""Small made sets of questions and of labelled words, in the files that such data come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.common import ROOT

TINY_BPE = ROOT / "tests" / "data" / "gpt2_tiny"
BPE_FLAGS = (
    "--bpe", "gpt2", "--gpt2-encoder-json", str(TINY_BPE / "encoder.json"), "--gpt2-vocab-bpe", str(TINY_BPE / "vocab.bpe"),
)  # fmt: skip

COLORS = ("red", "green", "blue", "white")
ANIMALS = ("cat", "dog", "horse", "owl")
FILLERS = ("the", "man", "said", "that", "it", "was", "in", "time", "some", "when", "over", "what")


def tiny_gpt2_dictionary(path: Path) -> Path:
    """A ``dict.txt`` of every piece of the small byte-level BPE."""
    pieces = json.loads((TINY_BPE / "encoder.json").read_text(encoding="utf-8"))
    path.write_text("".join(f"{number} 1\n" for number in sorted(pieces.values())), encoding="utf-8")
    return path


def squad(count: int, seed: int, words: int = 12, no_answer: bool = False) -> dict[str, Any]:
    """SQuAD's JSON: every context names one color and one animal; questions ask for one of them.

    With ``no_answer`` (2.0) every third question asks for a number, which no context has.
    """
    rng = np.random.default_rng(seed)
    paragraphs = []
    for number in range(count):
        text = [FILLERS[int(k)] for k in rng.integers(len(FILLERS), size=words)]
        places = rng.choice(words, size=2, replace=False)
        named = {"color": COLORS[int(rng.integers(4))], "animal": ANIMALS[int(rng.integers(4))]}
        for place, word in zip(places.tolist(), named.values(), strict=True):
            text[place] = word
        context = " ".join(text) + "."
        qas: list[dict[str, Any]] = []
        for kind, place in zip(named, places.tolist(), strict=True):
            start = len(" ".join([*text[:place], ""])) if place else 0
            answers = [{"text": named[kind], "answer_start": start}]
            qas.append({"id": f"{number}-{kind}", "question": f"Which {kind} is it?", "answers": answers})
        if no_answer:
            for qa in qas:
                qa["is_impossible"] = False
            qas.append({"id": f"{number}-none", "question": "What number?", "answers": [], "is_impossible": True})
        paragraphs.append({"context": context, "qas": qas})
    return {"version": "made", "data": [{"title": "made", "paragraphs": paragraphs}]}


def write_squad(directory: Path, count: int = 48, **options: Any) -> Path:
    """``train.json`` and ``dev.json`` (the same questions, so that learning them shows)."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("train.json", "dev.json"):
        (directory / name).write_text(json.dumps(squad(count, 1, **options)), encoding="utf-8")
    return directory


def conll(count: int, seed: int) -> str:
    """Four columns: word, two of no use, label; colors are MISC, animals of one or two words are PER."""
    rng = np.random.default_rng(seed)
    lines = ["-DOCSTART- -X- -X- O", ""]
    for _ in range(count):
        for _ in range(int(rng.integers(3, 9))):
            kind = int(rng.integers(5))
            if kind == 0:
                lines.append(f"{COLORS[int(rng.integers(4))]} NN B-NP B-MISC")
            elif kind == 1:
                lines.append(f"{ANIMALS[int(rng.integers(4))]} NN B-NP B-PER")
                if rng.integers(2):
                    lines.append("kind NN I-NP I-PER")
            else:
                lines.append(f"{FILLERS[int(rng.integers(len(FILLERS)))]} NN B-NP O")
        lines.append("")
    return "\n".join(lines)


def write_conll(directory: Path, count: int = 64) -> Path:
    """``train.txt`` and ``dev.txt`` (the same sentences)."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("train.txt", "dev.txt"):
        (directory / name).write_text(conll(count, 1), encoding="utf-8")
    return directory
