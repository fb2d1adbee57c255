"""Two checkpoints that strangers trained with the original in 2021, with their own code (docs/old_checkpoints.md).

Needs a package index: ``python -m pytest -m network``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import environment

pytestmark = pytest.mark.network

PREDICT = """
import sapiens, torch
masked = "**QLV*SGVEVKKPGASVKVSCKASGYTFTNYYMYWVRQAPGQGLEWMGGINPSNGGTNFNEKFKNRVTLTTDSSTTTAYMELKSLQFDDTAVYYCARRDYRFDMGFDYWGQGTTVTVSS"
best = sapiens.predict_masked(masked, "H")
assert best == "QVQLVQSGVEV" + masked[11:], best
scores = sapiens.predict_scores(masked, "H")
# As its README prints them, to six digits.
assert scores.head().iloc[:, :4].astype(float).round(6).values.tolist() == [
    [0.003272, 0.004147, 0.004011, 0.004590],
    [0.012038, 0.003854, 0.006803, 0.008174],
    [0.003384, 0.003895, 0.003726, 0.004068],
    [0.004612, 0.005325, 0.004443, 0.004641],
    [0.005519, 0.003664, 0.003555, 0.005269],
], scores.head()
whole = "QVKLQESGAELARPGASVKLSCKASGYTFTNYWMQWVKQRPGQGLDWIGAIYPGDGNTRYTHKFKGKATLTADKSSSTAYMQLSSLASEDSGVYYCARGEGNYAWFAYWGQGTTVTVSS"
assert sapiens.predict_residue_embedding(whole, "H", layer=None).shape == (5, 119, 128)
assert sapiens.predict_sequence_embedding(whole, "H", layer=None).shape == (5, 128)
assert "X" not in sapiens.predict_masked("DIQMTQSPSSLSASVGDRVTITCRASXXI", "L")
"""

ALONE = """
from fairseq.models.roberta import RobertaModel
hub = RobertaModel.from_pretrained(DIRECTORY, "checkpoint_vh.pt", ".", bpe=None, user_dir="small").eval()
assert (hub.args.arch, hub.args.encoder_layers, hub.args.criterion) == ("roberta_small", 4, "smooth_masked_lm")
best = hub.fill_mask("Q V Q L <mask> Q S G", topk=2)
assert [candidate.token for candidate in best] == ["S", "V"], best
"""


def run(code: str, cwd: Path, site: Path) -> None:
    paths = os.pathsep.join((environment()["PYTHONPATH"], str(site)))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment(PYTHONPATH=paths), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


def test_sapiens_gives_its_documented_answers(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    subprocess.run([*install, "sapiens==1.0.4", "pandas"], check=True)
    run(PREDICT, tmp_path, site)
    page = Path(__file__).parents[2] / "docs" / "old_checkpoints.md"
    plugin = next(block for block in page.read_text(encoding="utf-8").split("```python\n") if "@register" in block)
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "__init__.py").write_text(plugin.partition("```")[0], encoding="utf-8")
    run(ALONE.replace("DIRECTORY", repr(str(site / "sapiens" / "models" / "v1"))), tmp_path, site / "nothing")
