"""``fairseq-info`` tells what a bug report needs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import fairseq
from tests.common import error_sentence, run_command


def test_info_names_versions_devices_and_components():
    text = run_command("info").stdout
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
    assert fairseq.__version__ in rows["fairseq"] and "python" in rows and "torch" in rows
    assert "roberta_base" in rows["architecture"] and "masked_lm" in rows["task"] and "adam" in rows["optimizer"]
    assert "usable cores" in rows["cpu"] and "1 within an operator" in rows["threads"]
    assert "FAIRSEQ_MALLOC" in rows["memory"] and rows["products"]


def test_info_says_why_reference_implementations_run():
    text = run_command("info", env={"FAIRSEQ_NATIVE": "0"}).stdout
    assert "reference implementations run instead: FAIRSEQ_NATIVE=0 is set" in text


def test_info_says_what_was_asked_for():
    text = run_command(
        "info", env={"FAIRSEQ_MALLOC": "default", "FAIRSEQ_LINEAR": "onednn", "FAIRSEQ_WAIT": "passive"}
    ).stdout
    assert "OMP_WAIT_POLICY=PASSIVE" in text
    assert "the default of the C library (FAIRSEQ_MALLOC=default)" in text and "onednn (FAIRSEQ_LINEAR)" in text


def test_info_lists_plugins(tmp_path):
    plugin = tmp_path / "my_plugin"
    plugin.mkdir()
    (plugin / "__init__.py").write_text(
        "from fairseq.models import register_model_architecture\n"
        "@register_model_architecture('roberta', 'roberta_mine')\ndef mine(args):\n    pass\n"
    )
    assert "roberta_mine" in run_command("info", "--user-dir", plugin).stdout
    missing = run_command("info", "--user-dir", tmp_path / "nowhere", expect=2)
    assert "does not exist" in error_sentence(missing, "info")


@pytest.mark.parametrize("buffered", ["", "1"])
def test_output_that_nobody_takes(buffered):
    program = [sys.executable, "-m", "fairseq.cli.info"]
    env = {**os.environ, "PYTHONUNBUFFERED": buffered}
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        done = subprocess.run(program, env=env, stdout=gone, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (141, "")  # of a signal SIGPIPE
    with open("/dev/full", "wb") as full:
        done = subprocess.run(program, env=env, stdout=full, stderr=subprocess.PIPE, text=True)
    sentence = "fairseq-info: error: cannot write the output: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, sentence)
