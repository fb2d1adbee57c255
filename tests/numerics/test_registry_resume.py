"""Every preset's kind and every variant of a slot goes on from a checkpoint as if it had not stopped, to the last bit.

They are taken from the registries: a new variant is in here without a line of test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.cli import train
from fairseq.dataclass.slots import chosen_variants
from fairseq.models.roberta.presets import PRESETS
from tests.common import tiny_data_bin
from tests.faults.kills import differing
from tests.numerics.test_registry_sweep import ALLOWED, PLUGIN, SIZES, SLOTS
from tests.unit.roberta import KINDS

FLAGS = (
    "--cpu --task masked_lm --criterion masked_lm --tokens-per-sample 40 --sample-break-mode eos --batch-size 6 --seed 3 "
    "--optimizer adam --lr 0.005 --lr-scheduler inverse_sqrt --warmup-updates 2 --weight-decay 0.01 --clip-norm 1.0 "
    "--max-update 4 --save-interval-updates 2 --no-epoch-checkpoints --num-workers 0 --log-format none --disable-validation"
).split()


def kinds_and_variants() -> dict[str, dict[str, Any]]:
    """The kinds of presets, and one combination for each variant that none of them has."""
    found = {name: ALLOWED[name] for name in KINDS}
    for name, settings in ALLOWED.items():
        seen = {(slot, v) for known in found.values() for slot, v in chosen_variants(known["arch"], known).items()}
        if not set(chosen_variants(settings["arch"], settings).items()) <= seen:
            found[name] = settings
    return found


RUNS = kinds_and_variants()
MORE = {
    "sparse update": ({"arch": "roberta", "channel_mixer": "fff"}, ["--fff-sparse-update"]),
    "bf16 with alibi and clap": ({"arch": "roberta_alibi_clap"}, ["--bf16"]),
    "bf16 with average": ({"arch": "roberta_bigs"}, ["--bf16", "--store-ema", "--ema-fp32"]),
    "accumulated": ({"arch": "roberta_conv"}, ["--update-freq", "2", "--batch-ramp-updates", "3"]),
}


def test_every_variant_is_in_here() -> None:
    for slot, registry in SLOTS.items():
        assert {chosen_variants(s["arch"], s)[slot] for s in RUNS.values()} == set(registry.names())


def goes_on(settings: dict[str, Any], more: list[str], place: Path) -> None:
    """Four updates at once, and two after two that were stored, end in the same state."""
    data = tiny_data_bin(place / "data-bin", ["train"], per_document=0)
    sizes = {**SIZES, "dropout": 0.1, **settings}
    words = [word for key, value in sizes.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    if PRESETS.get(settings["arch"], {}).get("zero_masking"):
        words.append("--omit-mask")
    states = []
    for name, start in (("whole", []), ("parts", ["--restore-file", str(place / "whole" / "checkpoint_1_2.pt")])):
        saved = ["--user-dir", str(PLUGIN), "--save-dir", str(place / name), *start]
        train.cli_main(argv=[str(data), *FLAGS, *words, *more, *saved])
        states.append(torch.load(place / name / "checkpoint_last.pt", weights_only=True))
    whole, parts = ([state[key] for key in ("model", "last_optimizer_state")] for state in states)
    assert states[1]["optimizer_history"][-1]["num_updates"] == 4
    assert list(differing(whole, parts)) == []
    positions = [{key: state["extra_state"].get(key) for key in ("train_iterator", "ema")} for state in states]
    assert list(differing(*positions)) == []


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_goes_on_to_the_last_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    goes_on(settings, [], tmp_path)


@pytest.mark.parametrize(("settings", "more"), MORE.values(), ids=MORE)
def test_other_ways_to_train(settings: dict[str, Any], more: list[str], tmp_path: Path) -> None:
    goes_on(settings, more, tmp_path)
