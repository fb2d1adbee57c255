"""Running the commands in subprocesses and reading what they print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "tests" / "data" / "reference"
DATA = REFERENCE / "data-bin"

TINY_FLAGS = (
    "--cpu --task masked_lm --criterion masked_lm --mask-prob 0.15 --sample-break-mode complete --tokens-per-sample 64 "
    "--arch roberta --encoder-layers 2 --encoder-embed-dim 32 --encoder-ffn-embed-dim 64 --encoder-attention-heads 4 "
    "--max-positions 64 --optimizer adam --adam-betas (0.9,0.98) --adam-eps 1e-6 --weight-decay 0.01 --clip-norm 1.0 "
    "--batch-size 4 --update-freq 2 --log-format json --log-interval 1 --seed 7 --num-workers 0 --dropout 0.0 "
    "--attention-dropout 0.0 --skip-invalid-size-inputs-valid-test --lr-scheduler polynomial_decay --warmup-updates 4 "
    "--total-num-update 40 --lr 0.005"
).split()


def command(module: str, *args: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, args)]


def environment(**extra: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **extra}


def run(module: str, *args: object, cwd: Path, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module args`` and return its exit code and output."""
    return subprocess.run(
        command(module, *args), cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=timeout
    )


def train(*args: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A ``fairseq-train`` run that must succeed."""
    done = run("fairseq.cli.train", *args, cwd=cwd, **env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def json_lines(text: str) -> list[dict[str, Any]]:
    """The statistics lines of a log, in order."""
    return [json.loads(line[line.index('{"epoch"') :]) for line in text.splitlines() if '{"epoch"' in line]


def train_inner(text: str) -> dict[str, dict[str, Any]]:
    """The lines printed between updates, by ``num_updates``."""
    return {row["num_updates"]: row for row in json_lines(text) if "loss" in row}


def valid(text: str) -> dict[str, dict[str, Any]]:
    """The validation lines, by ``valid_num_updates``."""
    return {row["valid_num_updates"]: row for row in json_lines(text) if "valid_loss" in row}


def assert_printed_close(expected: dict[str, Any], actual: dict[str, Any], units: int = 2) -> None:
    """Every number of ``expected`` is in ``actual``, within ``units`` of its last printed digit."""
    for key, value in expected.items():
        want, got = Decimal(str(value)), Decimal(str(actual[key]))
        last_digit = Decimal(10) ** min(int(want.as_tuple().exponent), int(got.as_tuple().exponent))
        assert abs(want - got) <= units * last_digit, f"{key}: expected {want}, got {got}"


def without_clocks(row: dict[str, Any]) -> dict[str, Any]:
    """``row`` without what depends on the speed of the machine."""
    return {key: value for key, value in row.items() if key.split("_")[-1] not in ("wps", "ups", "wall")}
