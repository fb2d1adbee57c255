"""Sentence pairs of the masked_lm task, the vocabulary for them, and the recipes that use both."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairseq.data.dictionary import Dictionary
from fairseq.data.encoders.base import build_bpe
from fairseq.data.encoders.configs import SentencepieceConfig
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from fairseq.data.pairs import PairTypesDataset, SentencePairDataset
from fairseq.dataclass.build import build_config
from fairseq.dataclass.hydra_yaml import find_primary, read_primary
from fairseq.errors import ConfigError, DataError, DataNotFoundError
from fairseq.models import build_model
from fairseq.optim import build_optimizer
from fairseq.optim.configs import FairseqAdamConfig
from fairseq.tasks.configs import MaskedLMConfig
from fairseq.tasks.masked_lm import MaskedLMTask
from tests.common import ROOT
from tests.unit.roberta import Task, small_model

SENTENCES = ["a b c", "d e", "", "f g h i", "a", "", "b c d", "e f", "g h i"]  # the last one has no partner
RECIPES = ROOT / "examples" / "alibi_clap" / "config" / "conv"


class Lines:
    def __init__(self, *lines: list[int]) -> None:
        self.lines = [torch.tensor(line) for line in lines]
        self.sizes = np.array([len(line) for line in lines])

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.lines[index]

    def __len__(self) -> int:
        return len(self.lines)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    dictionary = Dictionary()
    builder = MMapIndexedDatasetBuilder(str(folder / "train.bin"), dtype=np.uint16)
    for line in SENTENCES:
        builder.add_item(torch.tensor([*(dictionary.add_symbol(word) for word in line.split()), dictionary.eos()]))
    builder.finalize(str(folder / "train.idx"))
    dictionary.save(str(folder / "dict.txt"))
    return folder


def test_pairs_and_their_types() -> None:
    lines = Lines([5, 6, 2], [2], [7, 2], [8, 9, 10, 2], [11, 2], [12, 2])
    pairs = SentencePairDataset(lines, 6)
    assert [pairs[i].tolist() for i in range(len(pairs))] == [[5, 6, 2, 7, 2], [8, 9, 10, 2, 11, 2]]
    assert pairs.sizes.tolist() == [5, 6]
    types = PairTypesDataset(pairs, before=1)
    assert types[0].tolist() == [0, 0, 0, 0, 1, 1] and types[1].tolist() == [0] * 5 + [1, 1]
    short = SentencePairDataset(lines, 3)
    assert short[1].tolist() == [8, 9, 10] and PairTypesDataset(short, before=1)[1].tolist() == [0] * 4
    with pytest.raises(DataError, match="at least two sentences"):
        SentencePairDataset(Lines([5, 2], [2]), 3)


def samples(data: Path, **options: Any) -> tuple[MaskedLMTask, list[dict[str, Any]]]:
    task = MaskedLMTask.setup_task(
        MaskedLMConfig(data=str(data), tokens_per_sample=8, pair_mode="consecutive", seed=1, mask_prob=0.3, **options)
    )
    task.load_dataset("train")
    batches = task.get_batch_iterator(task.dataset("train"), max_sentences=8).next_epoch_itr(shuffle=False)
    return task, list(batches)


def test_batches_of_pairs(data: Path) -> None:
    task, (batch,) = samples(data)
    inputs, dictionary = batch["net_input"], task.dictionary
    text = {}
    for row, index in enumerate(batch["id"].tolist()):
        target, source = batch["target"][row], inputs["src_tokens"][row]
        ids = torch.where(target == 1, source, target)
        text[index] = " ".join(dictionary[idx] for idx in ids.tolist())
        first = ids.tolist().index(2) + 1
        length = int(inputs["src_lengths"][row])
        assert inputs["token_type_ids"][row].tolist() == [0] * first + [1] * (length - first) + [0] * (
            len(ids) - length
        )
    assert text == {
        0: "<s> a b c </s> d e </s>",
        1: "<s> f g h i </s> a </s>",
        2: "<s> b c d </s> e f </s>",
    }
    assert "token_type_ids" not in samples(data, token_types=False)[1][0]["net_input"]
    bare = samples(data, prepend_bos=False)[1][0]["net_input"]
    assert bare["src_tokens"].shape == bare["token_type_ids"].shape and bare["token_type_ids"].sum(1).tolist()[0] > 0


def test_types_are_given_to_models_that_have_them(data: Path) -> None:
    for types in (0, 2):
        task = MaskedLMTask.setup_task(MaskedLMConfig(data=str(data), pair_mode="consecutive", seed=1))
        cfg = build_config({"task": {"_name": "masked_lm", "data": str(data)}, "model": {"_name": "roberta_conv"}})
        cfg.model.update(
            {"encoder_layers": 1, "encoder_embed_dim": 12, "encoder_ffn_embed_dim": 8, "type_vocab_size": types}
        )
        model = task.build_model(cfg.model)
        task.load_dataset("train")
        batch = task.dataset("train").collater([task.dataset("train")[0]])
        assert ("token_type_ids" in batch["net_input"]) == (types > 0)
        model(**batch["net_input"])
    with pytest.raises(ConfigError, match="pair_mode"):
        MaskedLMTask.setup_task(MaskedLMConfig(data=str(data), token_types=True))


def test_sentencepiece_training(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "train_sentencepiece.py"))
    text = tmp_path / "text"
    text.write_text("".join(f"the {word} goes on over {word} hills\n" for word in ("cat", "dog", "sun") * 9))
    script["main"](["--input", str(text), "--prefix", str(tmp_path / "sp"), "--vocab-size", "20"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sp.dict.txt", "sp.model", "text"]
    dictionary = Dictionary.load(tmp_path / "sp.dict.txt")
    bpe = build_bpe(SentencepieceConfig(_name="sentencepiece", sentencepiece_model=str(tmp_path / "sp.model")))
    pieces = bpe.encode("the dog goes over the sun").split()
    assert all(dictionary.index(piece) != dictionary.unk() for piece in pieces)
    with pytest.raises(DataError, match="cannot train"):
        script["main"](["--input", str(text), "--prefix", str(tmp_path / "sp"), "--vocab-size", "3000"])
    with pytest.raises(DataNotFoundError, match="no text file"):
        script["main"](["--input", str(tmp_path / "none"), "--prefix", str(tmp_path / "sp")])


def test_adam_without_decay_of_biases_and_norms() -> None:
    """One update without gradients: only what decays moves; the default still decays everything in one group."""
    for no_decay, kept in (("", ()), ("bias,norm", ("bias", "norm"))):
        model = small_model("roberta", encoder_layers=1)
        cfg = FairseqAdamConfig(_name="adam", lr=[0.1], weight_decay=0.5, no_decay=no_decay)
        optimizer = build_optimizer(cfg, list(model.named_parameters()))
        assert len(optimizer.param_groups) == (2 if no_decay else 1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(1.0)
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        for name, parameter in model.named_parameters():
            wanted = 1.0 if any(piece in name for piece in kept) else 0.95
            torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, wanted))


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_recipes(name: str) -> None:
    content: dict[str, Any] = read_primary(find_primary(str(RECIPES), name)).content
    content["task"]["data"] = "-"
    cfg = build_config(content)
    assert cfg.task.pair_mode == "consecutive" and cfg.optimizer.no_decay == "bias,norm"
    with torch.device("meta"):
        model = build_model(cfg.model, Task())
    assert len(model.encoder.sentence_encoder.layers) == 12
