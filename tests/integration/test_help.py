"""``--help`` of every command: it works, explains every option, and does not wait for torch."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fairseq
from tests.common import run_command

COMMANDS = {
    "train": ((), ("--arch", "roberta", "--criterion", "masked_lm", "--optimizer", "adam", "--lr-scheduler", "cosine")),
    "validate": ((),),
    "validate-data": ((),),
    "preprocess": ((), ("--bpe", "gpt2")),
    "fill-mask": ((),),
    "preprocess-task": ((),),
    "predict": ((),),
    "glue": ((),),
    "info": ((),),
    "convert": ((),),
}
CASES = [(name, flags) for name, variants in COMMANDS.items() for flags in variants]


def options(text: str) -> dict[str, str]:
    """Option -> explanation, from the formatted help."""
    found: dict[str, str] = {}
    current = None
    for line in text.splitlines():
        start = re.match(r"  (-\S.*?)(?:\s{2,}(\S.*))?$", line)
        if start:
            current = start[1]
            found[current] = start[2] or ""
        elif current and line.startswith("      "):
            found[current] += line.strip()
        else:
            current = None
    return found


@pytest.mark.parametrize(("name", "flags"), CASES)
def test_help_explains_every_option(name: str, flags: tuple[str, ...]):
    done = run_command(name, *flags, "--help", env={"COLUMNS": "100", "PYTHONPROFILEIMPORTTIME": "1"})
    explained = options(done.stdout)
    assert explained, done.stdout
    silent = [option for option, text in explained.items() if not re.search("[a-z]{3}", text)]
    assert not silent, f"no explanation of {silent}"
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert imported and "torch" not in imported


@pytest.mark.parametrize("name", [*COMMANDS, "hydra-train"])
def test_version(name: str):
    assert run_command(name, "--version").stdout == f"fairseq {fairseq.__version__}\n"


def test_help_of_hydra_train(tmp_path: Path):
    shown = run_command("hydra-train", "--help").stdout
    assert "example:\n  fairseq-hydra-train --config-dir . --config-name base" in shown
    example = re.search(r"  base.yaml:\n(.*?)\n\n", shown, re.DOTALL)
    (tmp_path / "base.yaml").write_text(re.sub("^    ", "", example[1], flags=re.MULTILINE))
    words = re.search("example:\n  fairseq-hydra-train (.*)", shown)[1].split()
    composed = run_command("hydra-train", *words, "--cfg", "job", cwd=tmp_path).stdout
    assert "tokens_per_sample: 512" in composed and "seed: 2" in composed
    (tmp_path / "base.yaml").unlink()
    assert "--config-name" in run_command("hydra-train", cwd=tmp_path, expect=2).stderr
    assert not [*tmp_path.iterdir()]


def test_help_begins_with_an_example_and_names_defaults():
    shown = run_command("train", "--arch", "roberta_large", "--help", env={"COLUMNS": "200"}).stdout
    assert shown.index("example:\n  fairseq-train data-bin") < shown.index("--encoder-layers")
    explained = options(shown)
    assert explained["--encoder-layers N"].endswith("[24]") and explained["--dropout X"].endswith("[0.1]")
    assert "scoring" not in shown and "[[" not in shown
    shown = run_command("preprocess", "--help").stdout
    assert "--trainpref" in shown and "--fp16" not in shown and "--optimizer" not in shown


def test_help_shows_the_flags_of_what_was_chosen():
    assert "--lr-period-updates" not in run_command("train", "--help").stdout
    assert "--lr-period-updates" in run_command("train", "--lr-scheduler", "cosine", "--help").stdout
