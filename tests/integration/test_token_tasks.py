"""Questions and labelled words, from their own files to predictions, through the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fairseq.criterions.scores import squad_score
from tests.common import error_sentence, run_command
from tests.runs import train, valid
from tests.token_sets import BPE_FLAGS, squad, tiny_gpt2_dictionary, write_conll, write_squad

MODEL = (
    "--cpu --arch roberta --encoder-layers 2 --encoder-embed-dim 48 --encoder-ffn-embed-dim 96 "
    "--encoder-attention-heads 4 --dropout 0.0 --attention-dropout 0.0 --max-positions 64 --optimizer adam "
    "--adam-betas (0.9,0.98) --clip-norm 1.0 --lr-scheduler polynomial_decay --warmup-updates 10 --batch-size 16 "
    "--required-batch-size-multiple 1 --log-format json --log-interval 100 --seed 7 --num-workers 0 --no-epoch-checkpoints "
    "--save-dir ck --best-checkpoint-metric f1 --maximize-best-checkpoint-metric"
).split()
QUESTIONS = ["--task", "question_answering", "--criterion", "question_answering", "--lr", "0.003"]
WORDS = ["--task", "token_classification", "--criterion", "token_classification", "--lr", "0.005"]


def preprocess(task: str, data: Path, cwd: Path, *options: object, expect: int = 0) -> Any:
    tiny_gpt2_dictionary(cwd / "dict.txt")
    return run_command(
        "preprocess-task", "--task", task, "--data-dir", data, "--dest", "bin", "--srcdict", "dict.txt", "--workers", 1,
        *BPE_FLAGS, *options, cwd=cwd, expect=expect, timeout=600,
    )  # fmt: skip


def last_validation(stdout: str) -> dict[str, Any]:
    return list(valid(stdout).values())[-1]


def epochs(count: int, updates: int) -> list[str]:
    return ["--max-epoch", str(count), "--validate-interval", str(count), "--total-num-update", str(updates)]


def test_squad_is_learned_from_windows(tmp_path: Path) -> None:
    """SQuAD 2.0 in windows that do not hold the whole context: answers, and that there is none, are learned."""
    write_squad(tmp_path / "squad", 32, no_answer=True)
    preprocess("squad2", tmp_path / "squad", tmp_path)
    options = [
        "--allow-no-answer",
        "--window-length",
        "22",
        "--doc-stride",
        "8",
        "--predictions",
        "found.{subset}.json",
    ]
    done = train("bin", *QUESTIONS, *MODEL, *options, *BPE_FLAGS, *epochs(24, 340), cwd=tmp_path)
    scores = last_validation(done.stdout)
    assert float(scores["valid_em"]) > 95 and float(scores["valid_f1"]) > 95
    # The files say the same: scored by hand, answered again by fairseq-predict and by fairseq-validate.
    answers = json.loads((tmp_path / "found.valid.json").read_text())
    asked = [qa for entry in squad(32, 1, no_answer=True)["data"][0]["paragraphs"] for qa in entry["qas"]]
    values = [squad_score(answers[qa["id"]], [a["text"] for a in qa["answers"]], no_answer=True) for qa in asked]
    assert 100 * sum(em for em, _ in values) / len(values) == pytest.approx(float(scores["valid_em"]), abs=0.01)
    assert 100 * sum(f1 for _, f1 in values) / len(values) == pytest.approx(float(scores["valid_f1"]), abs=0.01)
    best = json.loads((tmp_path / "found.valid.nbest.json").read_text())
    assert best.keys() == answers.keys() and all(found[0]["text"] == answers[key] for key, found in best.items())
    assert json.loads((tmp_path / "found.valid.null_odds.json").read_text()).keys() == answers.keys()
    run_command(
        "predict", "--cpu", "--path", "ck/checkpoint_last.pt", "--input", "squad/dev.json", "--output", "again.json",
        cwd=tmp_path, timeout=600,
    )  # fmt: skip
    assert json.loads((tmp_path / "again.json").read_text()) == answers
    checked = run_command(
        "validate", "bin", "--cpu", "--path", "ck", "--task", "question_answering", "--batch-size", 5,
        "--log-format", "json", cwd=tmp_path, timeout=600,
    )  # fmt: skip
    assert f'"valid_em": "{scores["valid_em"]}"' in checked.stdout + checked.stderr


def test_columns_are_learned_in_bfloat16_with_alibi(tmp_path: Path) -> None:
    write_conll(tmp_path / "conll")
    preprocess("conll", tmp_path / "conll", tmp_path, "--label-column", 3)
    options = ["--bf16", "--encoder-alibi", "--no-token-positional-embeddings", "--predictions", "found.txt"]
    done = train("bin", *WORDS, *MODEL, *options, *BPE_FLAGS, *epochs(15, 60), cwd=tmp_path)
    scores = last_validation(done.stdout)
    assert float(scores["valid_f1"]) > 95 and float(scores["valid_accuracy"]) > 95
    assert {"valid_precision", "valid_recall"} <= scores.keys()
    rows = [line.split(" ") for line in (tmp_path / "found.txt").read_text().splitlines() if line]
    wanted = [line.split(" ") for line in (tmp_path / "conll" / "dev.txt").read_text().splitlines()[2:] if line]
    assert [row[:2] for row in rows] == [[row[0], row[3]] for row in wanted]
    right = sum(row[1] == row[2] for row in rows)
    assert 100 * right / len(rows) == pytest.approx(float(scores["valid_accuracy"]), abs=0.01)

    from fairseq.models.roberta import RobertaModel

    hub = RobertaModel.from_hub(str(tmp_path / "ck"), "checkpoint_last.pt", None, data=str(tmp_path / "bin"))
    assert hub.tag("the red owl kind") == [("the", "O"), ("red", "B-MISC"), ("owl", "B-PER"), ("kind", "I-PER")]


def test_a_span_outside_its_context_is_one_sentence(tmp_path: Path) -> None:
    data = squad(4, 1)
    data["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] = 999
    (tmp_path / "squad").mkdir()
    (tmp_path / "squad" / "train.json").write_text(json.dumps(data))
    sentence = error_sentence(preprocess("squad", tmp_path / "squad", tmp_path, expect=2), "preprocess-task")
    assert "train.json, question '0-color': the answer span [999, " in sentence and "outside the context" in sentence
