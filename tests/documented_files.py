"""Tiny stand-ins for the files that the documentation's commands read, under the names that they have there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.downstream import TINY, dictionary_of_ids, row, write
from tests.token_sets import squad, write_conll

LINES = ["The cat sat on the mat.", "A man rode the horse home.", "She reads a long book.", "It rains in May."] * 6
PAIRS = [("entailment", "not_entailment")[k % 2] for k in range(12)]


def write_inputs(folder: Path) -> None:
    """Text, JSON lines, the files of the BPE, GLUE, SQuAD, CoNLL and what is predicted."""
    for place in (folder, folder / "model", folder / "gpt2_bpe"):
        shutil.copytree(TINY, place, dirs_exist_ok=True)
        dictionary_of_ids(place)
    for name in ("train.raw", "valid.raw", "test.raw", "train.txt", "valid.txt", "sentences.txt"):
        write(folder / name, *LINES)
    for name in ("wiki.train.raw", "wiki.valid.raw"):
        write(folder / "wikitext-103-raw" / name, *LINES)
    for name in ("00", "01", "02", "val"):
        write(folder / "pile" / f"{name}.jsonl", *(json.dumps({"text": line}) for line in LINES))
    for place in ("GLUE", "glue_data", "glue"):
        write_rte(folder / place / "RTE")
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        write(folder / "squad" / name, json.dumps(squad(6, 1)))
    write_conll(folder / "conll2003", 8)
    write(folder / "words.txt", "The", "cat", "sat", "", "It", "rains")


def write_rte(folder: Path) -> None:
    heading = row("index", "sentence1", "sentence2", "label")
    pairs = [(number, LINES[number % 4], LINES[(number + 1) % 4]) for number in range(len(PAIRS))]
    for name in ("train", "dev"):
        rows = [row(*pair, label) for pair, label in zip(pairs, PAIRS, strict=True)]
        write(folder / f"{name}.tsv", heading, *rows)
    write(folder / "test.tsv", heading.removesuffix("\tlabel"), *(row(*pair) for pair in pairs))
