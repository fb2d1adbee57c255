"""Plugins as they were written for the original: own encoders, criterions and tasks, trained, saved and loaded by the commands.

And one that overrides every method that the original calls, and finds each of them called here.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import DATA, REFERENCE, ROOT, environment, run, train, train_inner, valid

PLUGINS = ROOT / "tests" / "data"
FLAGS = (
    "--cpu --optimizer adam --lr 0.01 --batch-size 8 --log-format json --log-interval 1 --num-workers 0 --dropout 0 "
    "--skip-invalid-size-inputs-valid-test"
).split()
MODEL = (
    "--arch roberta --encoder-layers 1 --encoder-embed-dim 16 --encoder-ffn-embed-dim 16 --encoder-attention-heads 2 "
    "--max-positions 64 --attention-dropout 0"
).split()
MASKED = "--task masked_lm --criterion masked_lm --tokens-per-sample 64 --sample-break-mode complete".split()


def plugin(name: str) -> list[object]:
    return ["--user-dir", PLUGINS / f"plugin_{name}"]


def load(folder: Path, name: str, data: Path, expression: str) -> str:
    """What ``expression`` of the ``hub`` interface of the last checkpoint prints, in a process of its own."""
    code = (
        "from fairseq.models.roberta import RobertaModel\n"
        f"hub = RobertaModel.from_pretrained({str(folder)!r}, 'checkpoint_last.pt', {str(data)!r}, bpe=None, "
        f"user_dir={str(PLUGINS / f'plugin_{name}')!r}).eval()\nprint({expression})"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def evaluate(data: Path, name: str, cwd: Path, *words: object) -> str:
    path = ["--path", "checkpoints/checkpoint_last.pt", "--batch-size", 8, "--cpu", "--log-format", "json"]
    skips = ["--skip-invalid-size-inputs-valid-test", "--num-workers", 0]
    done = run("fairseq.cli.validate", data, *plugin(name), *path, *skips, *words, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(line for line in done.stdout.splitlines() if "valid_loss" in line)


def test_an_encoder_of_the_old_contract(tmp_path: Path) -> None:
    own = ["--arch", "averaging_base", "--feature-scale", 0.5]
    first = train(DATA, *FLAGS, *plugin("encoder"), *MASKED, *own, "--max-update", 4, cwd=tmp_path)
    rows = train_inner(first.stdout)
    assert list(rows) == ["1", "2", "3", "4"] and float(rows["4"]["loss"]) < float(rows["1"]["loss"])
    score = valid(first.stdout)["4"]["valid_loss"]
    assert f'"valid_loss": "{score}"' in evaluate(DATA, "encoder", tmp_path, "--task", "masked_lm")
    again = train(DATA, *FLAGS, *plugin("encoder"), *MASKED, *own, "--max-update", 5, cwd=tmp_path)
    assert list(train_inner(again.stdout)) == ["5"]
    ids = "hub.encode('262 318')"
    states = f"[tuple(x.shape) for x in hub.extract_features({ids}, return_all_hiddens=True)]"
    printed = load(
        tmp_path / "checkpoints",
        "encoder",
        DATA,
        f"{states}, len(hub.fill_mask('262 <mask> 318', topk=2)), hub.model.max_positions(), "
        "hub.model.encoder.lm_head.weight is hub.model.encoder.sentence_encoder.embed_tokens.weight",
    )
    assert printed == "[(1, 4, 16), (1, 4, 16), (1, 4, 16)] 2 64 True"


def test_a_criterion_that_gives_embeddings(tmp_path: Path) -> None:
    data = tmp_path / "CoLA"
    shutil.copytree(ROOT / "tests" / "data" / "glue" / "CoLA", data)
    shutil.copy(REFERENCE / "data-bin" / "dict.txt", data / "input0")
    task = "--task sentence_prediction --num-classes 2 --init-token 0 --criterion noisy_sentence_prediction".split()
    words = [*FLAGS, *MODEL, *plugin("noise"), *task]
    rows = train_inner(train(data, *words, "--eps", 0.1, "--max-update", 2, cwd=tmp_path).stdout)
    assert all(float(row["difference"]) > 1e-5 for row in rows.values()), "the noise must reach the answers"
    assert all(float(row["accuracy"]) <= 1 for row in rows.values())
    silent = train_inner(train(data, *words, "--eps", 0, "--max-update", 1, "--save-dir", "0", cwd=tmp_path).stdout)
    assert abs(float(silent["1"]["difference"])) < 1e-6
    assert '"valid_accuracy"' in evaluate(data, "noise", tmp_path, "--task", "sentence_prediction")
    head = "hub.predict('sentence_classification_head', hub.encode('262 318')).shape[1]"
    assert load(tmp_path / "checkpoints", "noise", data, head) == "2"


def test_a_task_with_several_heads(tmp_path: Path) -> None:
    own = ["--task", "token_labels", "--criterion", "token_labels", "--seed", 2]
    first = train(DATA, *FLAGS, *MODEL, *plugin("heads"), *own, "--max-update", 3, cwd=tmp_path)
    assert [row["seen"] for row in train_inner(first.stdout).values()] == ["8", "16", "24"]
    again = train(DATA, *FLAGS, *MODEL, *plugin("heads"), *own, "--max-update", 4, cwd=tmp_path)
    assert train_inner(again.stdout)["4"]["seen"] == "32", "what the task stores must come back"
    score = valid(again.stdout)["4"]["valid_loss"]
    assert f'"valid_loss": "{score}"' in evaluate(DATA, "heads", tmp_path, "--task", "token_labels")
    heads = "list(hub.model.classification_heads), tuple(hub.predict('third', hub.encode('262 318')).shape)"
    assert load(tmp_path / "checkpoints", "heads", DATA, heads) == "['parity', 'third'] (1, 4, 3)"


def test_every_method_that_the_original_calls_is_called(tmp_path: Path) -> None:
    """Each is overridden by one that notes its name; the numbers stay those of the quick ways."""
    own = ["--task", "recorder", "--criterion", "recorder", "--arch", "recorder", *MODEL[2:], *MASKED[4:]]
    record = tmp_path / "missing.json"

    def recorded(updates: int) -> tuple[dict[str, list[str]], dict[str, dict[str, str]]]:
        words = [*FLAGS, *plugin("recorder"), *own, "--max-update", updates]
        rows = train_inner(train(DATA, *words, cwd=tmp_path, RECORD=str(record)).stdout)
        return json.loads(record.read_text()), rows

    _, rows = recorded(2)
    missing, more = recorded(3)  # loads what the first one saved
    assert not {kind: names for kind, names in missing.items() if names}
    plain = train(DATA, *FLAGS, *MODEL, *MASKED, "--max-update", 3, "--save-dir", "plain", cwd=tmp_path)
    for update, row in train_inner(plain.stdout).items():
        assert float({**rows, **more}[update]["loss"]) == pytest.approx(float(row["loss"]), abs=2e-3)


def test_a_plugin_may_take_the_name_of_a_builtin(tmp_path: Path) -> None:
    folder = tmp_path / "own_loss"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from fairseq.criterions import FairseqCriterion, register_criterion\n"
        "from fairseq.criterions.masked_lm import MaskedLmLoss\n"
        "@register_criterion('masked_lm')\n"
        "class Doubled(MaskedLmLoss):\n"
        "    def __init__(self, task):\n"
        "        FairseqCriterion.__init__(self, task)\n"
        "    def forward(self, model, sample, reduce=True):\n"
        "        loss, size, log = super().forward(model, sample)\n"
        "        return 2 * loss, size, {**log, 'loss': 2 * log['loss']}\n"
    )
    words = [*FLAGS, *MODEL, *MASKED, "--max-update", 1]
    plain = train_inner(train(DATA, *words, cwd=tmp_path).stdout)["1"]
    done = train(DATA, *words, "--user-dir", folder, "--save-dir", "own", cwd=tmp_path)
    assert float(train_inner(done.stdout)["1"]["loss"]) == pytest.approx(2 * float(plain["loss"]), abs=1e-3)
    assert "criterion 'masked_lm' is now own_loss.Doubled, which takes the place of the built-in one" in (
        done.stdout + done.stderr
    )
