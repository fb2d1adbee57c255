"""Folders of BERT with convolutions: converted ones give the original's numbers, and come back as they were."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from fairseq.errors import CheckpointError
from fairseq.interop.bert_convolutions_config import original_kernel, original_parts, original_projection
from fairseq.interop.convert import convert_checkpoint
from fairseq.models.roberta import RobertaHubInterface, RobertaModel
from fairseq.modules.conv_grammar import Kernel, Projection
from tests.common import ROOT

DATA = ROOT / "tests" / "data" / "conv"
CASES: dict[str, Any] = json.loads((DATA / "index.json").read_text())
SPECIAL = {"cls": 116, "sep": 117, "pad": 118, "mask": 119, "unk": 0}
LIMIT, CLASSES_HEAD = 48, "sentence_classification_head"
TOLERANCES = {"fp64": 1e-10, "fp32": 2e-4}


def arrays(name: str, part: str) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for file in ("common", name):
        with np.load(DATA / f"{file}.npz") as stored:
            found |= {key.removeprefix(f"{part}/"): stored[key] for key in stored if key.startswith(part)}
    return found


def their_state(name: str) -> dict[str, Tensor]:
    """All that the original stores."""
    state = {key: torch.from_numpy(value).float() / 64 for key, value in arrays(name, "param").items()}
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
    state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"]
    state["bert.embeddings.position_ids"] = torch.arange(LIMIT)[None]
    at = torch.arange(LIMIT)
    for key in CASES[name]["keys"]:
        if key.endswith("relative_positions_mat"):
            state[key] = ((at - at[:, None]).clamp(-5, 5) + 5)[None, None]
    return {key: state[key] for key in CASES[name]["keys"]}


def folder_of(name: str, folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CASES[name]["config"]))
    torch.save(their_state(name), folder / "pytorch_model.bin")
    return folder


def converted(source: Path, folder: Path, special: dict[str, int] | None = None) -> RobertaHubInterface:
    convert_checkpoint("bert-convolutions", "fairseq", source, folder, special)
    return RobertaModel.from_pretrained(str(folder), "model.pt", str(folder), bpe=None).eval()


def our_ids(hub: RobertaHubInterface) -> Tensor:
    """Our row of each of their ids, by what ``dict.txt`` says."""
    dictionary = hub.task.source_dictionary
    special = {116: 0, 118: 1, 117: 2, 0: 3, 119: len(dictionary) - 1}
    return torch.tensor([special.get(row, dictionary.index(str(row))) for row in range(len(dictionary))])


@pytest.mark.parametrize("name", CASES)
def test_a_converted_model_gives_the_numbers_of_the_original(name: str, tmp_path: Path) -> None:
    hub = converted(folder_of(name, tmp_path / "source"), tmp_path / "out", SPECIAL)
    assert hub.task.mask_idx == len(hub.task.source_dictionary) - 1 == 119
    rows, given, out = our_ids(hub), arrays(name, "input"), arrays(name, "out")
    ids, types = rows[torch.from_numpy(given["input_ids"]).long()], torch.from_numpy(given["token_type_ids"]).long()
    padding, labels = torch.from_numpy(given["attention_mask"]) == 0, torch.from_numpy(given["labels"]).long()
    where = torch.from_numpy(arrays(name, "sel")["sel"]).long().T
    for tag, atol in TOLERANCES.items():
        model = hub.model.double() if tag == "fp64" else hub.model.float()
        inputs: dict[str, Any] = {"token_type_ids": types, "padding_mask": padding}
        with torch.no_grad():
            states = model(ids, features_only=True, return_all_hiddens=True, **inputs)[1]["inner_states"][1:]
            if name.startswith("seqcls"):
                logits = model(ids, features_only=True, classification_head_name=CLASSES_HEAD, **inputs)[0]
                loss, found = F.cross_entropy(logits, labels), logits
            else:
                logits = model(ids, **inputs)[0][..., rows]
                loss, found = F.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits[where[0], where[1]]
                packed = model(ids, masked_tokens=labels != -100, masked_targets=rows[labels[labels != -100]], **inputs)
                torch.testing.assert_close(packed[0] / 12, loss, rtol=0, atol=atol)
        wanted = torch.from_numpy(out[f"logits_{tag}"])
        real = torch.ones(len(wanted), dtype=torch.bool)
        if not name.startswith("seqcls"):
            real = ~padding[where[0], where[1]][: len(wanted)]
        torch.testing.assert_close(found[: len(wanted)][real], wanted[real], rtol=0, atol=atol)
        assert abs(float(loss) - CASES[name][f"loss_{tag}"]) < atol
        layers = torch.stack([state[:30, 1] for state in states])
        near: dict[str, Any] = {"rtol": 0, "atol": 1e-5, "check_dtype": False}
        torch.testing.assert_close(layers, torch.from_numpy(out["layers_row1"]), **near)


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    source = folder_of(name, tmp_path / "source")
    converted(source, tmp_path / "out")  # special tokens where the original puts them
    convert_checkpoint("fairseq", "bert-convolutions", tmp_path / "out", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == CASES[name]["config"]
    wanted = their_state(name)
    for found in (load_file(tmp_path / "back/model.safetensors"), torch.load(tmp_path / "back/pytorch_model.bin")):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in wanted.items())


def test_the_encoder_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As the original saves it for fine-tuning: without prefix, with a pooler that belongs to no head."""
    source = folder_of("seqcls_composite_noabs", tmp_path / "source")
    whole = their_state("seqcls_composite_noabs")
    bare = {key.removeprefix("bert."): value for key, value in whole.items() if not key.startswith("classifier")}
    (source / "pytorch_model.bin").unlink()
    save_file(bare, source / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        hub = converted(source, tmp_path / "out")
    assert "untrained" in caplog.text and "pooler" in caplog.text
    assert hub.model(torch.tensor([[0, 5, 6, 2]]))[0].shape == (1, 4, 120)
    convert_checkpoint("fairseq", "bert-convolutions", tmp_path / "out", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == {key for key in bare if not key.startswith("pooler")}
    assert all(torch.equal(back[key], bare[key]) for key in back)


def test_a_model_without_origin(tmp_path: Path) -> None:
    converted(folder_of("convolution_scaled", tmp_path / "source"), tmp_path / "out")
    (tmp_path / "out" / "conversion.json").unlink()
    convert_checkpoint("fairseq", "bert-convolutions", tmp_path / "out", tmp_path / "back")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert original_parts(config) == original_parts(CASES["convolution_scaled"]["config"])
    assert config["vocab_size"] == 120 and config["pad_token_id"] == 1
    ours = converted(tmp_path / "back", tmp_path / "again", {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": 119}).model
    first = RobertaModel.from_pretrained(str(tmp_path / "out"), "model.pt", str(tmp_path / "out"), bpe=None).model
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), first.state_dict().values(), strict=True))


def test_the_sentencepiece_model_goes_along(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text(
        "".join(f"the {word} goes on and on over {word} hills\n" for word in ("cat", "dog", "sun", "moon") * 9)
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "spiece"), vocab_size=116, hard_vocab_limit=False, minloglevel=2
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    source = folder_of("convk_only", tmp_path / "source")
    (tmp_path / "spiece.model").rename(source / "spiece.model")
    size = len(pieces)
    added = {"[CLS]": size, "[SEP]": size + 1, "<pad>": size + 2, "[MASK]": size + 3}
    (source / "added_tokens.json").write_text(json.dumps(added))
    state = their_state("convk_only")
    for key in (key for key, value in state.items() if len(value) == 120):
        state[key] = state[key][: size + 4]
    torch.save(state, source / "pytorch_model.bin")
    config = {**CASES["convk_only"]["config"], "vocab_size": size + 4, "pad_token_id": size + 2}
    (source / "config.json").write_text(json.dumps(config))
    convert_checkpoint("bert-convolutions", "fairseq", source, tmp_path / "out")
    hub = RobertaModel.from_pretrained(str(tmp_path / "out"), "model.pt", str(tmp_path / "out"), "sentencepiece")
    ids = hub.encode("the moon goes over hills").tolist()
    dictionary = hub.task.source_dictionary
    assert [ids[0], ids[-1]] == [0, 2] and dictionary.unk() not in ids
    assert [dictionary[idx] for idx in ids[1:-1]] == pieces.encode("the moon goes over hills", out_type=str)
    embedded = hub.model.encoder.sentence_encoder.embed_tokens.weight[ids[1:-1]]
    assert torch.equal(
        embedded, state["bert.embeddings.word_embeddings.weight"][pieces.encode("the moon goes over hills")]
    )
    (source / "tokenizer_config.json").write_text("{}")
    convert_checkpoint("bert-convolutions", "fairseq", source, tmp_path / "out")
    for options in ({}, {"bpe": "sentencepiece"}, {"sentencepiece_albert": True}):  # the name alone loses nothing
        hub = RobertaModel.from_hub(str(tmp_path / "out"), "model.pt", str(tmp_path / "out"), **options)
        assert hub.encode("The  M\u00f6\u00f6n goes over HILLS").tolist() == ids
    convert_checkpoint("fairseq", "bert-convolutions", tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back" / "spiece.model").read_bytes() == (source / "spiece.model").read_bytes()


def test_strings_are_read_as_the_original_reads_them() -> None:
    assert original_kernel("foo") == original_kernel("convbert 4") == Kernel()
    assert original_kernel("convqk 5 7") == Kernel(query=True, reach=5)
    assert original_kernel("convk-convfixed 2") == Kernel(content=False, key=True, fixed=True, reach=2)
    assert original_projection("value_forward", "mixed_convolution 3 1") == Projection()
    assert original_projection("qk", "convolution-no_act-depth 3 9") == Projection(
        kind="depthwise", activation=False, reach=3
    )
    for bad in ("qk_convfixed", "convq 0", "qk convfixed 5"):
        with pytest.raises(CheckpointError, match="reach"):
            original_kernel(bad)
    with pytest.raises(CheckpointError, match="groups"):
        original_projection("qk", "convolution 3")


def test_positions_that_begin_later(tmp_path: Path) -> None:
    """As models have them that were trained here with default settings."""
    hub = converted(folder_of("convbert", tmp_path / "source"), tmp_path / "out")
    state = torch.load(tmp_path / "out" / "model.pt", weights_only=False)
    model = {key: value for key, value in state["cfg"]["model"].items() if not key.startswith("learned_")}
    key = "encoder.sentence_encoder.embed_positions.weight"
    table = state["model"][key]
    weights = {**state["model"], key: torch.cat([torch.zeros(2, table.size(1)), table])}
    torch.save({**state, "model": weights, "cfg": {**state["cfg"], "model": model}}, tmp_path / "out" / "model.pt")
    moved = RobertaModel.from_pretrained(str(tmp_path / "out"), "model.pt", str(tmp_path / "out"), bpe=None).eval()
    ids = torch.tensor([[0, 9, 8, 2]])
    torch.testing.assert_close(moved.model(ids)[0], hub.model(ids)[0])
    convert_checkpoint("fairseq", "bert-convolutions", tmp_path / "out", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(back[name], value) for name, value in their_state("convbert").items())


def test_models_that_it_cannot_be(tmp_path: Path) -> None:
    source = folder_of("convbert", tmp_path / "source")
    converted(source, tmp_path / "out")
    state = torch.load(tmp_path / "out" / "model.pt", weights_only=False)
    for key, value, said in (
        ("conv_attention_convbert", "query", "ConvBERT's weights at the key"),
        ("attention_bias", "alibi", "attention_bias=alibi"),
    ):
        model = {**state["cfg"]["model"], key: value, "positions": "none"}
        torch.save({**state, "cfg": {**state["cfg"], "model": model}}, tmp_path / "out" / "model.pt")
        with pytest.raises(CheckpointError, match=said):
            convert_checkpoint("fairseq", "bert-convolutions", tmp_path / "out", tmp_path / "back")
    config = {**CASES["convbert"]["config"], "hidden_act": "swish"}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="swish"):
        convert_checkpoint("bert-convolutions", "fairseq", source, tmp_path / "other")
