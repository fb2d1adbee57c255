"""CoNLL columns: reading, mistakes in them, pieces of words, the dataset and the scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.criterions.entity_scores import accuracy, entity_scores
from fairseq.data.dictionary import Dictionary
from fairseq.data.encoders import build_bpe
from fairseq.data.encoders.configs import GPT2BPEConfig
from fairseq.errors import ConfigError, DataError, DataNotFoundError
from fairseq.finetune.conll import load_conll, read_columns
from fairseq.finetune.conll import write_conll as convert
from fairseq.finetune.layout import Job
from fairseq.finetune.reading import ConllConfig
from fairseq.finetune.words import (
    IGNORED,
    LabelledSentences,
    TokenLabelsDataset,
    split_into_windows,
    unlabelled,
    word_labels,
    word_pieces,
)
from fairseq.tasks.prediction import write_labels
from tests.token_sets import TINY_BPE, tiny_gpt2_dictionary, write_conll

SETTINGS = GPT2BPEConfig(
    _name="gpt2", gpt2_encoder_json=str(TINY_BPE / "encoder.json"), gpt2_vocab_bpe=str(TINY_BPE / "vocab.bpe")
)
COLUMNS = "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n\n\n-DOCSTART- -X- O\n\nPeter\u00a0X NNP B-PER\n"


@pytest.fixture
def dictionary(tmp_path: Path) -> Dictionary:
    return Dictionary.load(str(tiny_gpt2_dictionary(tmp_path / "dict.txt")))


def columns_file(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_reading_columns(tmp_path: Path) -> None:
    path = columns_file(tmp_path / "train.txt", COLUMNS)
    found = [(sentence.line, sentence.words, sentence.labels) for sentence in read_columns(path)]
    # A no-break space is part of its word.
    assert found == [(3, ["EU", "rejects"], ["B-ORG", "O"]), (9, ["Peter\u00a0X"], ["B-PER"])]
    assert [sentence.labels for sentence in read_columns(path, 0, 1)] == [["NNP", "VBZ"], ["NNP"]]
    assert [sentence.labels for sentence in read_columns(path, -3, None)] == [[], []]
    tabs = columns_file(tmp_path / "tabs.txt", "a\t\tX\r\nb\tY")
    assert [(s.words, s.labels) for s in read_columns(tabs)] == [(["a", "b"], ["X", "Y"])]


@pytest.mark.parametrize(
    "text, options, message",
    [
        ("a X O\nb O\n", {}, r"train.txt, line 2: 2 columns, but the lines before have 3"),
        ("a O\n\nb X O\n", {}, r"train.txt, line 3: 3 columns, but the lines before have 2"),
        ("a O\n", {"label_column": 2}, r"train.txt, line 1: there is no column 2 among 2 .*--label-column"),
        ("a O\n", {"word_column": -3}, r"train.txt, line 1: there is no column -3 among 2 .*--word-column"),
        ("\n\n-DOCSTART- O\n", {}, "train.txt has no sentences"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path: Path, text: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read_columns(columns_file(tmp_path / "train.txt", text), **options))


@pytest.mark.parametrize(
    "words", [["the"], ["EU", "rejects", "😀", "東京", "x"], ["\u00a0", "a"], ["a", "\u00a0", "b"]]
)
def test_every_word_has_its_pieces(words: list[str]) -> None:
    bpe = build_bpe(SETTINGS)
    pieces = word_pieces(bpe, words, "<unk>")
    assert len(pieces) == len(words) and all(pieces)
    joined = [piece for found in pieces for piece in found if piece != "<unk>"]
    assert bpe.decode(" ".join(joined)).replace("\u00a0", "") == " ".join(words).replace("\u00a0", "")
    if all(word.isalpha() for word in words):
        for word, found in zip(words, pieces, strict=True):
            assert bpe.decode(" ".join(found)).strip() == word


class Deaf:
    """An encoder that drops what is not a letter."""

    def encode(self, text: str) -> str:
        return " ".join("".join(char if char.isalpha() else " " for char in text).split())

    decode = staticmethod(lambda symbols: symbols)


def test_words_without_pieces_are_unknown() -> None:
    assert word_pieces(Deaf(), ["!", "a", "?", "?", "b", "."], "<unk>") == [
        ["<unk>"], ["a"], ["<unk>"], ["<unk>"], ["b"], ["<unk>"],
    ]  # fmt: skip
    assert word_pieces(None, ["a", "b"], "<unk>") == [["a"], ["b"]]


def test_long_sentences_are_cut_between_words() -> None:
    assert split_into_windows(torch.tensor([2, 2, 1, 9, 1, 1]), 4) == [(0, 2), (2, 3), (3, 4), (4, 6)]
    assert split_into_windows(torch.tensor([9]), 4) == [(0, 1)]
    assert split_into_windows(torch.tensor([1, 1, 1, 1]), 4) == [(0, 4)]


def made(tmp_path: Path, dictionary: Dictionary, **options: Any) -> tuple[LabelledSentences, Dictionary]:
    write_conll(tmp_path, 20)
    (tmp_path / "out").mkdir()
    written = convert(Job(tmp_path, tmp_path / "out", dictionary, SETTINGS, options=ConllConfig(**options)))
    assert [split.name for split in written.splits] == ["train", "valid"]
    labels = Dictionary.load(str(tmp_path / "out" / "label" / "dict.txt"))
    return load_conll(tmp_path / "out", "valid", labels), labels


def test_layout_keeps_everything(tmp_path: Path, dictionary: Dictionary) -> None:
    source, labels = made(tmp_path, dictionary)
    sentences = list(read_columns(tmp_path / "dev.txt"))
    assert set(labels.symbols[labels.nspecial :]) == {"O", "B-MISC", "B-PER", "I-PER"}
    assert source.words == [sentence.words for sentence in sentences]
    assert source.labels is not None
    for number, sentence in enumerate(sentences):
        assert [labels.symbols[labels.nspecial + label] for label in source.labels[number]] == sentence.labels
        assert source.sizes[number].sum() == len(source.pieces[number])
    with pytest.raises(DataNotFoundError, match="Dataset not found: test"):
        load_conll(tmp_path / "out", "test", labels)


def test_a_label_that_training_lacks_names_its_line(tmp_path: Path, dictionary: Dictionary) -> None:
    columns_file(tmp_path / "train.txt", "a B-X\nb O\n")
    columns_file(tmp_path / "dev.txt", "a O\n\nb O\nc B-Y\n")
    (tmp_path / "out").mkdir()
    with pytest.raises(
        DataError, match=r"dev.txt, line 4: the label 'B-Y' is not among those .*\(B-X, O\).*--label-dict"
    ):
        convert(Job(tmp_path, tmp_path / "out", dictionary, SETTINGS))
    (tmp_path / "other").mkdir()
    with pytest.raises(DataNotFoundError, match="no files of columns"):
        convert(Job(tmp_path / "other", tmp_path / "out", dictionary, SETTINGS))


@pytest.mark.parametrize("max_positions", [64, 7, 4, 3])
def test_every_word_is_predicted_once(tmp_path: Path, dictionary: Dictionary, max_positions: int) -> None:
    source, labels = made(tmp_path, dictionary)
    dataset = TokenLabelsDataset(source, dictionary, max_positions, "valid")
    rows = []
    for first in range(0, len(dataset), 5):
        batch = dataset.collater([dataset[i] for i in range(first, min(first + 5, len(dataset)))])
        assert batch["net_input"]["src_tokens"].size(1) <= max_positions
        assert ((batch["target"] != IGNORED) == batch["words"]).all()
        # A model that is right.
        logits = torch.nn.functional.one_hot(batch["target"].clamp(min=0), len(labels)).float()
        rows += word_labels(batch, logits).tolist()
    expected = []
    for sentence in range(len(source.words)):
        assert source.labels is not None
        expected += [[sentence, word, label, label] for word, label in enumerate(source.labels[sentence].tolist())]
    assert sorted(rows) == expected
    with pytest.raises(ConfigError, match="max_positions must be at least 3"):
        TokenLabelsDataset(source, dictionary, 2)


def test_words_in_memory(dictionary: Dictionary) -> None:
    source = unlabelled([["the", "man"], ["said"]], build_bpe(SETTINGS), dictionary)
    dataset = TokenLabelsDataset(source, dictionary, 16)
    batch = dataset.collater([dataset[0], dataset[1]])
    assert (batch["target"] == IGNORED).all() and batch["words"].sum() == 3


def test_entity_scores_of_a_small_case() -> None:
    targets = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-MISC"]]
    predictions = [["B-PER", "I-PER", "O", "B-PER"], ["O", "O"]]
    assert accuracy(targets, predictions) == pytest.approx(100 * 4 / 6)
    # Entities: 3 wanted, 2 found, 1 right.
    expected = {"precision": 50.0, "recall": 100 / 3, "f1": 40.0}
    assert entity_scores(targets, predictions) == pytest.approx(expected)
    assert entity_scores([["O"]], [["O"]]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


ENTITY_CASES = json.loads((Path(__file__).parents[1] / "data" / "entity_scores.json").read_text())


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "IOBES", "broken"])
def test_entity_scores_equal_those_of_seqeval(scheme: str) -> None:
    """The golden file holds 50 random cases per scheme with precision, recall and F1 of seqeval 1.2.2."""
    cases = [case for case in ENTITY_CASES if case["scheme"] == scheme]
    assert len(cases) == 50
    for case in cases:
        targets, predictions = ([line.split() for line in case[key]] for key in ("targets", "predictions"))
        found = entity_scores(targets, predictions)
        assert list(found.values()) == pytest.approx([100 * score for score in case["scores"]], abs=1e-9), case


def test_predicted_columns(tmp_path: Path) -> None:
    write_labels(str(tmp_path / "new" / "out.txt"), [["a", "b"], ["c"]], [["O", "B-X"], ["O"]], [["O", "O"], ["B-X"]])
    assert (tmp_path / "new" / "out.txt").read_text() == "a O O\nb B-X O\n\nc O B-X\n\n"
    write_labels(str(tmp_path / "out.txt"), [["a"]], None, [["O"]])
    assert (tmp_path / "out.txt").read_text() == "a O\n\n"
    with pytest.raises(DataError, match="cannot write the predictions to"):
        write_labels(str(tmp_path / "out.txt" / "x"), [["a"]], None, [["O"]])
