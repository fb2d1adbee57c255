"""The tasks question_answering and token_classification: settings, loading, losses, scores."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fairseq.criterions import build_criterion
from fairseq.data.dictionary import Dictionary
from fairseq.data.encoders.configs import GPT2BPEConfig
from fairseq.errors import ConfigError, DataError, DataNotFoundError
from fairseq.finetune.conll import write_conll as write_columns
from fairseq.finetune.layout import Job
from fairseq.finetune.squad import write_squad2
from fairseq.logging import metrics
from fairseq.tasks import setup_task
from fairseq.tasks.configs import QuestionAnsweringConfig, TokenClassificationConfig
from tests.token_sets import TINY_BPE, squad, tiny_gpt2_dictionary, write_conll

SETTINGS = GPT2BPEConfig(
    _name="gpt2", gpt2_encoder_json=str(TINY_BPE / "encoder.json"), gpt2_vocab_bpe=str(TINY_BPE / "vocab.bpe")
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``qa`` and ``words``, preprocessed."""
    folder = tmp_path_factory.mktemp("data")
    dictionary = Dictionary.load(str(tiny_gpt2_dictionary(folder / "dict.txt")))
    (folder / "raw").mkdir()
    for name in ("train.json", "dev.json", "test.json"):
        (folder / "raw" / name).write_text(json.dumps(squad(6, 1, no_answer=True)))
    write_conll(folder / "raw", 8)
    for name, write in (("qa", write_squad2), ("words", write_columns)):
        (folder / name).mkdir()
        write(Job(folder / "raw", folder / name, dictionary, SETTINGS))
    return folder


def questions(data: Path, **options: Any) -> Any:
    settings = {"allow_no_answer": True, "max_positions": 20, "doc_stride": 4, **options}
    return setup_task(QuestionAnsweringConfig(_name="question_answering", data=str(data / "qa"), **settings))


def words(data: Path, **options: Any) -> Any:
    return setup_task(
        TokenClassificationConfig(_name="token_classification", data=str(data / "words"), max_positions=12, **options)
    )


class Fixed(nn.Module):
    """A model whose head gives these logits."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, src_tokens: torch.Tensor, **unused: Any) -> tuple[torch.Tensor, None]:
        assert src_tokens.shape == self.logits.shape[:2]
        return self.logits, None


def judge(task: Any, criterion: Any, split: str, logits_of: Any) -> dict[str, Any]:
    """The statistics of a validation pass in batches of 5."""
    dataset = task.dataset(split)
    criterion.eval()
    with metrics.aggregate(collect=True) as meters:
        for first in range(0, len(dataset), 5):
            batch = dataset.collater([dataset[i] for i in range(first, min(first + 5, len(dataset)))])
            output = criterion(Fixed(logits_of(batch)), batch)[2]
            task.reduce_metrics([output], criterion)
    return meters.get_smoothed_values()


def right_spans(batch: dict[str, Any]) -> torch.Tensor:
    logits = torch.zeros(*batch["net_input"]["src_tokens"].shape, 2)
    return logits.scatter_(1, batch["target"].unsqueeze(1), 50.0)


def test_right_answers_score_100(data: Path) -> None:
    task = questions(data)
    task.load_dataset("valid")
    stats = judge(task, build_criterion("question_answering", task), "valid", right_spans)
    assert (stats["em"], stats["f1"]) == (100.0, 100.0) and stats["loss"] == pytest.approx(0.0, abs=1e-3)
    assert len(task.dataset("valid")) > 18  # several windows a question


def test_no_answer_needs_its_threshold(data: Path) -> None:
    task = questions(data, null_score_threshold=-1000.0)  # says "no answer" always
    task.load_dataset("valid")
    stats = judge(task, build_criterion("question_answering", task), "valid", right_spans)
    assert stats["em"] == stats["f1"] == pytest.approx(100 / 3, abs=0.01)


def test_span_loss_is_the_mean_of_both_cross_entropies(data: Path) -> None:
    task = questions(data)
    task.load_dataset("train")
    dataset = task.dataset("train")
    batch = dataset.collater([dataset[i] for i in range(7)])
    criterion = build_criterion("question_answering", task)
    logits = torch.randn(*batch["net_input"]["src_tokens"].shape, 2)
    loss, sample_size, output = criterion(Fixed(logits), batch)
    expected = 0.0
    for row, length in enumerate(batch["net_input"]["src_lengths"].tolist()):
        for side in (0, 1):
            probabilities = torch.log_softmax(logits[row, :length, side].double(), 0)  # padding is not a choice
            expected -= float(probabilities[batch["target"][row, side]]) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-5) and sample_size == 7
    assert "_collected" not in output  # nothing is searched in training
    with metrics.aggregate() as meters:
        criterion.reduce_metrics([output, output])
    assert meters.get_smoothed_values()["loss"] == pytest.approx(expected / 7 / math.log(2), abs=1e-3)


def test_predictions_are_written_for_each_subset(data: Path, tmp_path: Path) -> None:
    task = questions(data, predictions=str(tmp_path / "new" / "{subset}.json"))
    for split in ("valid", "test"):
        task.load_dataset(split)
        judge(task, build_criterion("question_answering", task), split, right_spans)
    answers = json.loads((tmp_path / "new" / "valid.json").read_text())
    asked = [qa for entry in squad(6, 1, no_answer=True)["data"][0]["paragraphs"] for qa in entry["qas"]]
    assert answers == {qa["id"]: qa["answers"][0]["text"] if qa["answers"] else "" for qa in asked}
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "test.json", "test.nbest.json", "test.null_odds.json", "valid.json", "valid.nbest.json", "valid.null_odds.json",
    ]  # fmt: skip
    best = json.loads((tmp_path / "new" / "valid.nbest.json").read_text())
    assert sum(found["probability"] for found in best["0-color"]) == pytest.approx(1.0)


def test_batches_of_similar_length(data: Path) -> None:
    for task in (questions(data, group_by_length=True), words(data, group_by_length=True)):
        dataset = task.load_dataset("valid")
        order = dataset.ordered_indices()
        assert sorted(order.tolist()) == list(range(len(dataset)))
        lengths = dataset.sizes[order]
        assert (lengths[1:] * 1.25 >= lengths[:-1]).all()


@pytest.mark.parametrize("name", ["doc_stride", "max_query_length", "max_answer_length", "n_best"])
def test_settings_of_windows_are_positive(data: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"task.{name} must be at least 1, but is 0"):
        questions(data, **{name: 0})


def test_mistakes_in_questions(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task.window_length must be at most task.max_positions \(20\), but is 30"):
        questions(data, window_length=30)
    with pytest.raises(DataError, match="question '0-none' has no answer; .*--allow-no-answer"):
        questions(data, allow_no_answer=False).load_dataset("valid")
    questions(data, allow_no_answer=False).load_dataset("test")  # whose answers nobody knows
    with pytest.raises(DataNotFoundError, match="Dataset not found: valid1"):
        questions(data).load_dataset("valid1")
    with pytest.raises(DataError, match="leaves no room for its context in 6 tokens; lower --max-query-length"):
        questions(data, max_positions=6).load_dataset("valid")
    with pytest.raises(ConfigError, match="needs --task question_answering"):
        build_criterion("question_answering", words(data))
    with pytest.raises(ConfigError, match="needs --task token_classification"):
        build_criterion("token_classification", questions(data))


def right_labels(batch: dict[str, Any]) -> torch.Tensor:
    return 50.0 * torch.nn.functional.one_hot(batch["target"].clamp(min=0), 4).float()


def test_right_labels_score_100(data: Path) -> None:
    task = words(data)
    task.load_dataset("valid")
    criterion = build_criterion("token_classification", task)
    stats = judge(task, criterion, "valid", right_labels)
    assert [stats[name] for name in ("accuracy", "precision", "recall", "f1")] == [100.0] * 4
    nothing = judge(task, criterion, "valid", lambda batch: right_labels({"target": 0 * batch["target"]}))
    common = task.class_names[0]
    assert common == "O" and nothing["f1"] == 0.0 and 0 < nothing["accuracy"] < 100


def test_accuracy_alone_without_entity_scores(data: Path) -> None:
    task = words(data, entity_scores=False)
    task.load_dataset("valid")
    stats = judge(task, build_criterion("token_classification", task), "valid", right_labels)
    assert stats["accuracy"] == 100.0 and "f1" not in stats


def test_word_loss_counts_first_pieces(data: Path) -> None:
    task = words(data)
    task.load_dataset("train")
    dataset = task.dataset("train")
    batch = dataset.collater([dataset[i] for i in range(6)])
    logits = torch.randn(*batch["target"].shape, 4)
    loss, sample_size, _ = build_criterion("token_classification", task)(Fixed(logits), batch)
    places = batch["words"].nonzero().tolist()
    expected = -sum(float(torch.log_softmax(logits[b, t], 0)[batch["target"][b, t]]) for b, t in places)
    assert float(loss) == pytest.approx(expected, rel=1e-5) and sample_size == len(places)


def test_heads_fit_any_encoder(data: Path) -> None:
    """Both heads on a model in bfloat16; padding changes nothing; a checkpoint keeps them by their names."""
    from fairseq.models.roberta import RobertaModel

    for task, name, width in (
        (questions(data), "question_answering_head", 2),
        (words(data), "token_classification_head", 4),
    ):
        args = SimpleNamespace(
            encoder_layers=1, encoder_embed_dim=16, encoder_ffn_embed_dim=32, encoder_attention_heads=2, encoder_alibi=True,
            no_token_positional_embeddings=True, contrastive_pretraining=True, max_positions=20,
        )  # fmt: skip
        model = RobertaModel.build_model(args, task).eval()
        task.add_head(model)
        model = model.to(torch.bfloat16)
        task.load_dataset("valid")
        dataset = task.dataset("valid")
        batch = dataset.collater([dataset[i] for i in range(4)])
        output = model(**batch["net_input"], features_only=True, classification_head_name=name)[0]
        assert output.shape == (*batch["net_input"]["src_tokens"].shape, width) and output.dtype == torch.bfloat16
        keys = [key for key in model.state_dict() if key.startswith("classification_heads.")]
        assert keys == [f"classification_heads.{name}.out_proj.{part}" for part in ("weight", "bias")]
        build_criterion("question_answering" if width == 2 else "token_classification", task).eval()(model, batch)
