"""Conversion of checkpoints between the fork's format and upstream's."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest
import torch

from fairseq.checkpoint.safe_load import load
from fairseq.errors import CheckpointError, ConfigError, OutOfScopeError
from fairseq.interop import fairseq_alibi_clap as formats
from fairseq.interop.convert import ALIBI_CLAP, UPSTREAM, convert_checkpoint
from tests.runs import ROOT, environment

DATA = ROOT / "tests" / "data" / "roberta"


def stored(name):
    return load(DATA / name / "checkpoint.pt")


@pytest.mark.parametrize("name", ["baseline", "sinusoidal"])
def test_there_and_back(name):
    state = stored(name)
    upstream = formats.to_upstream(state)
    assert "omit_mask" in state["cfg"]["task"]  # the given one stays
    assert not (formats.MODEL_KEYS.keys() | formats.TASK_KEYS) & {
        *upstream["cfg"]["model"],
        *(upstream["cfg"]["task"]),
    } - {"mask_prob"}
    assert upstream["cfg"]["task"]["mask_prob"] == 0.15 and "mask_prob" not in upstream["cfg"]["model"]
    lost = {key for key in state["model"] if key not in upstream["model"]}
    assert all(key.endswith("_float_tensor") for key in lost) and len(lost) == (name == "sinusoidal")
    upstream["cfg"]["task"] |= {"include_index": True, "skip_masking": False, "d2v2_multi": False}
    back = formats.from_upstream(upstream)
    assert back["cfg"]["task"] == state["cfg"]["task"]
    assert {**back["cfg"], "task": None} == {**state["cfg"], "task": None}
    assert all(torch.equal(back["model"][key], state["model"][key]) for key in back["model"])


def test_what_upstream_has_not():
    for name, words in (
        ("alibi", r"no ALiBi \(model.encoder_alibi=True\)"),
        ("zero_clap", "no CLAP head.*no zero masking"),
    ):
        with pytest.raises(CheckpointError, match=words):
            formats.to_upstream(stored(name))
    with pytest.raises(CheckpointError, match="no CLAP head"):
        formats.to_upstream({"model": {"encoder.lm_head.beta": 1}, "args": argparse.Namespace()})
    state = stored("baseline")
    state["cfg"]["model"] |= {"token_mixer": "mine", "mine_reach": 3, "learned_offset": 0}
    with pytest.raises(
        CheckpointError,
        match=r"no learned_offset \(model.learned_offset=0\), no token_mixer \(model.token_mixer=mine\)",
    ):
        formats.to_upstream(state)
    with pytest.raises(CheckpointError, match="no fairseq checkpoint"):
        formats.to_upstream({"weights": 1})
    state = stored("baseline")
    state["cfg"]["task"]["d2v2_multi"] = True
    with pytest.raises(OutOfScopeError):
        formats.from_upstream(state)


def test_a_run_from_the_command_line():
    state = stored("baseline")
    flat = {**state["cfg"]["model"], **state["cfg"]["task"], "encoder_alibi": False, "mask_prob": 0.15}
    state["cfg"]["model"] = argparse.Namespace(**flat)
    converted = formats.to_upstream(state)["cfg"]
    assert not hasattr(converted["model"], "encoder_alibi") and converted["task"]["mask_prob"] == 0.15
    assert state["cfg"]["model"].encoder_alibi is False


def test_our_own_keys(caplog):
    state = stored("baseline")
    state["cfg"]["dataset"]["exact_valid_steps"] = True
    state["cfg"]["model"]["attention_backend"] = "sdpa"
    assert "attention_backend" not in formats.to_upstream(state)["cfg"]["model"]
    assert "exact_valid_steps" not in formats.to_upstream(state)["cfg"]["dataset"]
    assert "dataset.exact_valid_steps" in caplog.text


def test_files(tmp_path):
    source = DATA / "baseline" / "checkpoint.pt"
    with pytest.raises(ConfigError, match="no conversion"):
        convert_checkpoint("fairseq-alibi-clop", UPSTREAM, source, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="is the input"):
        convert_checkpoint(ALIBI_CLAP, UPSTREAM, source, source)
    script = [sys.executable, str(ROOT / "scripts" / "convert_checkpoint.py"), "--from", ALIBI_CLAP, "--to", UPSTREAM]
    done = subprocess.run([*script, source, tmp_path / "x.pt"], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0 and "omit_mask" not in load(tmp_path / "x.pt")["cfg"]["task"], done.stderr
    done = subprocess.run(
        [*script, DATA / "zero_clap" / "checkpoint.pt", tmp_path / "y.pt"],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "zero_clap" in done.stderr
    assert not (tmp_path / "y.pt").exists()
