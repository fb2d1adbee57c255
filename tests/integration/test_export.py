"""``fairseq-export``: graphs for other runtimes, with any batch and length, and with 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairseq.interop.convert import read_any
from fairseq.interop.export import export
from tests.common import run_command
from tests.interop import folder_with
from tests.unit.roberta import some_tokens

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

KINDS: dict[str, dict[str, Any]] = {
    "roberta": {"_name": "roberta"},
    "prenorm, alibi": {"_name": "roberta_alibi", "encoder_normalize_before": True},
    "clap": {"_name": "roberta_clap"},
    "convolutions": {"_name": "roberta_conv", "conv_attention_value_projection": "convolution_depth_mixed 2"},
    "bigs": {"_name": "roberta_bigs"},
    "fff": {"_name": "roberta_fff", "fff_depth": 2, "fff_trees": 2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_gives_the_logits_of_our_encoder(kind: str, tmp_path: Path) -> None:
    model = folder_with(tmp_path / "ours", {**KINDS[kind], "encoder_layers": 1})
    error = export(read_any(tmp_path / "ours"), "onnx", tmp_path / "model.onnx")
    assert error < 1e-5
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for batch, tokens in ((1, 1), (1, 70), (3, 9)):
        ids = some_tokens(batch, tokens)
        kept = ids != 1
        found = session.run(None, {"input_ids": ids.numpy(), "attention_mask": kept.long().numpy()})[0]
        with torch.no_grad():
            wanted = model(ids)[0]
        assert np.abs(found - wanted.numpy())[kept.numpy()].max(initial=0) < 1e-4, (batch, tokens)


def test_the_command(tmp_path: Path) -> None:
    model = folder_with(tmp_path / "ours", {"_name": "roberta", "encoder_layers": 1}, heads={"task": 3})
    words = "export --format torch-export --output head ours model.pt2".split()
    assert "wrote model.pt2" in run_command(*words, cwd=tmp_path, timeout=600).stdout
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    ids = some_tokens(2, 12)
    with torch.no_grad():
        found = loaded(input_ids=ids, attention_mask=(ids != 1).long())
        assert torch.allclose(found, model(ids, True, False, "task")[0], atol=1e-5)
    (tmp_path / "text").write_text("w1 w2 w3 w4 w5 w6 w7\n" * 40)
    words = "export --format onnx --int8 --measure text ours model.onnx".split()
    done = run_command(*words, cwd=tmp_path, timeout=600)
    assert "8 bits" in done.stdout and "times as fast" in done.stdout and (tmp_path / "model.onnx").stat().st_size
    for words, wrong in (
        ("--format torch-export --int8 ours x", "of --format onnx only"),
        ("--format onnx nowhere x", "there is no nowhere"),
        ("--format onnx --output head ours/model.pt ours/model.pt", "ours/model.pt"),
    ):
        done = run_command("export", *words.split(), cwd=tmp_path, expect=None)
        assert done.returncode and wrong in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
