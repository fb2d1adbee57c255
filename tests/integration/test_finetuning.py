"""Fine-tuning by the commands: the original's numbers, YAML files, checkpoints, scores, mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fairseq.checkpoint.safe_load import load
from fairseq.models.roberta import RobertaModel
from tests.runs import REFERENCE, ROOT, assert_printed_close, run, train, train_inner, valid

GLUE = ROOT / "tests" / "data" / "glue"
PRETRAINED = REFERENCE / "baseline" / "checkpoint_1_6.pt"
FLAGS = (
    f"--cpu --restore-file {PRETRAINED} --max-positions 64 --batch-size 8 --max-tokens 2200 --task sentence_prediction "
    "--reset-optimizer --reset-dataloader --reset-meters --required-batch-size-multiple 1 --init-token 0 "
    "--separator-token 2 --shorten-method truncate --arch roberta --encoder-layers 2 --encoder-embed-dim 32 "
    "--encoder-ffn-embed-dim 64 --encoder-attention-heads 4 --criterion sentence_prediction --dropout 0.0 "
    "--attention-dropout 0.0 --pooler-dropout 0.0 --weight-decay 0.1 --optimizer adam --adam-betas (0.9,0.98) "
    "--adam-eps 1e-06 --clip-norm 0.0 --lr-scheduler polynomial_decay --lr 0.001 --total-num-update 100 "
    "--warmup-updates 6 --max-update 10 --log-format json --log-interval 1 --seed 7 --num-workers 0 --no-epoch-checkpoints"
).split()
TASKS = {
    "CoLA": "--num-classes 2 --best-checkpoint-metric mcc --maximize-best-checkpoint-metric".split(),
    "STS-B": "--num-classes 1 --regression-target --best-checkpoint-metric pearson --maximize-best-checkpoint-metric".split(),
}
HEAD = "sentence_classification_head"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The two tasks with the dictionary that they share with the reference runs."""
    for task in TASKS:
        shutil.copytree(GLUE / task, tmp_path / "data" / task)
        for inputs in (tmp_path / "data" / task).glob("input*"):
            shutil.copy(REFERENCE / "data-bin" / "dict.txt", inputs)
    return tmp_path / "data"


@pytest.mark.parametrize("task", TASKS)
def test_runs_of_the_original_are_repeated_and_predict(task: str, data: Path, tmp_path: Path) -> None:
    done = train(data / task, *FLAGS, *TASKS[task], cwd=tmp_path)
    expected = json.loads((GLUE / task / "log.json").read_text())
    rows, checked = train_inner(done.stdout), valid(done.stdout)
    assert list(rows) == [row["num_updates"] for row in expected["train_inner"]]
    for row in expected["train_inner"]:
        assert_printed_close(row, rows[row["num_updates"]])
        assert set(rows[row["num_updates"]]) - set(row) == {"wps", "ups", "train_wall", "wall"}
    assert_printed_close(expected["valid"][0], checked["10"])

    state = load(str(tmp_path / "checkpoints" / "checkpoint_best.pt"))
    metric = "mcc" if task == "CoLA" else "pearson"
    assert state["extra_state"]["best"] == float(checked["10"][f"valid_{metric}"])
    kept = {key for _, key, *_ in state["extra_state"]["metrics"]["valid"]}
    assert kept <= {"loss", "nll_loss", "accuracy", "wps", "wpb", "bsz"}  # what the original can read
    assert state["optimizer_history"][-1]["criterion_name"] == "SentencePredictionCriterion"

    hub = RobertaModel.from_pretrained(
        tmp_path / "checkpoints", "checkpoint_best.pt", str(data / task), bpe=None
    ).eval()
    texts = ["262 318", ("5 6 7", "262 318 319 12"), "6"]
    together = hub.predict_sentences(HEAD, texts, return_logits=True, batch_size=2)
    alone = [hub.predict(HEAD, hub.encode(*([t] if isinstance(t, str) else t)), return_logits=True)[0] for t in texts]
    for row, other in zip(together, alone, strict=True):
        assert row.tolist() == pytest.approx(other.tolist(), abs=1e-6)
    if task == "CoLA":
        labels = hub.task.label_dictionary
        names = [labels.string([label + labels.nspecial]) for label in together.argmax(dim=1)]
        assert set(names) <= {"0", "1"}
    assert len(hub.fill_mask("262 <mask> 318", topk=2)) == 2

    evaluated = run(
        "fairseq.cli.validate", data / task, "--path", "checkpoints/checkpoint_best.pt", "--batch-size", 8, "--cpu",
        "--required-batch-size-multiple", 1, "--log-format", "json", cwd=tmp_path,
    )  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stderr
    again = json.loads(
        next(line for line in evaluated.stdout.splitlines() if "valid_loss" in line).split("| valid | ")[1]
    )
    assert again["valid_loss"] == checked["10"]["valid_loss"]
    assert again[f"valid_{metric}"] == checked["10"][f"valid_{metric}"]


def test_the_old_yaml_files_run(data: Path, tmp_path: Path) -> None:
    done = run(
        "fairseq.cli.hydra_train", "--config-dir", ROOT / "examples" / "roberta" / "config" / "finetuning",
        "--config-name", "sts_b", f"task.data={data / 'STS-B'}", f"checkpoint.restore_file={PRETRAINED}",
        "task.max_positions=64", "+model.encoder_layers=2", "+model.encoder_embed_dim=32", "+model.encoder_ffn_embed_dim=64",
        "+model.encoder_attention_heads=4", "+model.pooling=masked_mean", "common.log_interval=1",
        "optimization.max_update=2", "dataset.num_workers=0", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert list(train_inner(done.stdout)) == ["1", "2"]
    assert "valid_pearson" in valid(done.stdout)["2"]
    saved = load(str(next(tmp_path.glob("outputs/*/*/checkpoints/checkpoint_last.pt"))))
    assert saved["cfg"]["task"]["regression_target"] is True  # it follows the criterion
    assert saved["cfg"]["model"]["pooling"] == "masked_mean"


def test_a_checkpoint_with_other_classes_starts_its_head_anew(data: Path, tmp_path: Path) -> None:
    train(data / "CoLA", *FLAGS, "--num-classes", 2, "--max-update", 1, "--save-dir", "two", cwd=tmp_path)
    more = ["--num-classes", 4, "--max-update", 1, "--restore-file", "two/checkpoint_last.pt"]
    done = train(data / "CoLA", *FLAGS, *more, cwd=tmp_path)
    assert "of the checkpoint has 2 classes, here 4: the head starts anew" in done.stdout
    wrong = run("fairseq.cli.train", data / "CoLA", *FLAGS, "--num-classes", 2, "--max-positions", 128, cwd=tmp_path)
    assert wrong.returncode == 2 and "--max-positions 64" in wrong.stderr
