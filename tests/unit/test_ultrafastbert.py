"""Folders of UltraFastBERT: converted ones give the reference's numbers, and come back as they were."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fairseq.checkpoint.safe_load import load
from fairseq.errors import CheckpointError, ConfigError, DataNotFoundError
from fairseq.interop.convert import convert_checkpoint
from fairseq.interop.ultrafastbert import DECODER, EMBEDDING, their_weights
from fairseq.interop.vocabulary import our_order, parse_special, to_ours, to_theirs
from fairseq.models import build_model
from fairseq.models.roberta import RobertaHubInterface, RobertaModel
from fairseq.registry import FFF_SIZES
from tests.common import ROOT, run_command

DATA = ROOT / "tests" / "data" / "ultrafastbert"
SPECIAL = {"cls": 1, "pad": 0, "sep": 2, "unk": 3, "mask": 4}
TOLERANCES = {"f32": 1e-5, "f64": 1e-10}


def to_fairseq(source: Path, folder: Path, special: dict[str, int] | None = None) -> RobertaHubInterface:
    convert_checkpoint("ultrafastbert", "fairseq", source, folder, SPECIAL if special is None else special)
    return RobertaModel.from_pretrained(str(folder), "model.pt", str(folder), bpe=None).eval()


def our_ids(hub: RobertaHubInterface) -> Tensor:
    """Our row of each of their ids, by what ``dict.txt`` says."""
    dictionary = hub.task.source_dictionary
    special = {1: 0, 0: 1, 2: 2, 3: 3, 4: len(dictionary) - 1}
    return torch.tensor([special.get(row, dictionary.index(str(row))) for row in range(len(dictionary))])


@pytest.mark.parametrize("tag", TOLERANCES)
@pytest.mark.parametrize("name", ["1x11", "ff"])
def test_a_converted_model_gives_the_numbers_of_the_reference(name: str, tag: str, tmp_path: Path) -> None:
    hub = to_fairseq(DATA / name, tmp_path / "out")
    assert hub.task.mask_idx == len(hub.task.source_dictionary) - 1 == 63
    model = hub.model.double() if tag == "f64" else hub.model
    wanted = load_file(DATA / name / "io.safetensors")
    rows = our_ids(hub)
    ids, labelled = rows[wanted["input_ids"]], wanted["labels"] != -100
    close: dict[str, Any] = {"rtol": 0, "atol": TOLERANCES[tag]}
    with torch.no_grad():
        nothing = torch.zeros_like(ids, dtype=torch.bool)
        logits = model(ids, padding_mask=nothing)[0]
        torch.testing.assert_close(logits[..., rows], wanted[f"{tag}.logits_nomask"], **close)
        targets = rows[wanted["labels"][labelled]]
        loss = model(ids, padding_mask=nothing, masked_tokens=labelled, masked_targets=targets)[0]
        for kind in ("dense", "sparse"):
            torch.testing.assert_close(loss / labelled.sum(), wanted[f"{tag}.loss_{kind}"][0], **close)
        real = wanted["attention_mask"].bool()
        logits = model(ids, padding_mask=~real)[0]
        torch.testing.assert_close(logits[..., rows], wanted[f"{tag}.logits_masked"], **close)
        loss = model(ids, padding_mask=~real, masked_tokens=labelled, masked_targets=targets)[0]
        torch.testing.assert_close(loss / labelled.sum(), wanted[f"{tag}.loss_sparse_attnmask"][0], **close)


@pytest.mark.parametrize("name", ["1x11", "ff"])
def test_there_and_back(name: str, tmp_path: Path) -> None:
    to_fairseq(DATA / name, tmp_path / "out")
    convert_checkpoint("fairseq", "ultrafastbert", tmp_path / "out", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == json.loads(
        (DATA / name / "config.json").read_text()
    )
    assert_same(load_file(tmp_path / "back" / "model.safetensors"), load_file(DATA / name / "model.safetensors"))


def test_the_way_back_of_a_model_that_was_trained_on_elsewhere(tmp_path: Path) -> None:
    to_fairseq(DATA / "ff", tmp_path / "out")
    (tmp_path / "run").mkdir()
    shutil.copy(tmp_path / "out" / "model.pt", tmp_path / "run" / "checkpoint_best.pt")
    path = tmp_path / "run" / "checkpoint_best.pt"
    convert_checkpoint("fairseq", "ultrafastbert", path, tmp_path / "back", SPECIAL)
    assert_same(load_file(tmp_path / "back" / "model.safetensors"), load_file(DATA / "ff" / "model.safetensors"))
    convert_checkpoint("fairseq", "ultrafastbert", path, tmp_path / "other")
    other = load_file(tmp_path / "other" / "model.safetensors")
    assert torch.equal(other[DECODER], load(path)["model"]["encoder.lm_head.weight"])


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key


def test_other_files(tmp_path: Path) -> None:
    """Pickled weights with the prefixes of wrappers, one of the tied matrices, settings without their section."""
    source = tmp_path / "source"
    source.mkdir()
    config = json.loads((DATA / "ff" / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config["arch"]))
    weights = load_file(DATA / "ff" / "model.safetensors")
    del weights[EMBEDDING]
    torch.save({f"_orig_mod.module.{key}": value for key, value in weights.items()}, source / "pytorch_model.bin")
    found = to_fairseq(source, tmp_path / "out").model.state_dict()
    wanted = to_fairseq(DATA / "ff", tmp_path / "other").model.state_dict()
    assert_same(found, wanted)


def test_classification_heads(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(DATA / "ff", source)
    own = {
        "pooler.dense.weight": torch.randn(24, 16),
        "pooler.dense.bias": torch.randn(24),
        "head.weight": torch.randn(3, 24),
        "head.bias": torch.randn(3),
    }
    weights = {key: value for key, value in load_file(DATA / "ff" / "model.safetensors").items() if key != DECODER}
    save_file({**weights, **own}, source / "model.safetensors")
    hub = to_fairseq(source, tmp_path / "out")
    ids = torch.tensor([[0, 5, 6, 2]])
    with torch.no_grad():
        pooled = hub.extract_features(ids).mean(dim=1)  # type: ignore[union-attr]
        inner = torch.tanh(pooled @ own["pooler.dense.weight"].t() + own["pooler.dense.bias"])
        logits = hub.predict("sentence_classification_head", ids, return_logits=True)
    torch.testing.assert_close(logits, inner @ own["head.weight"].t() + own["head.bias"])
    assert not hub.model.classification_heads["sentence_classification_head"].input_dropout
    convert_checkpoint("fairseq", "ultrafastbert", tmp_path / "out", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert_same(back, {**weights, **own, DECODER: weights[EMBEDDING]})
    assert json.loads((tmp_path / "back" / "config.json").read_text())["arch"]["num_labels"] == 3


class Task:
    """A dictionary of the size of the published one."""

    class Symbols:
        def __len__(self) -> int:
            return 32768

        def pad(self) -> int:
            return 1

    source_dictionary = Symbols()

    def max_positions(self) -> int:
        return 128


PARAMETERS = dict(
    zip(
        FFF_SIZES,
        (138513409, 176286721, 151104513, 157400065, 160547841, 162121729, 162908673, 163302145, 163498881, 163597249, 163646433, 163671025),
        strict=True,
    )
)  # fmt: skip


@pytest.mark.parametrize("size", FFF_SIZES)
def test_sizes_of_the_published_models(size: str) -> None:
    with torch.device("meta"):
        model = build_model(argparse.Namespace(arch=f"ultrafastbert_{size}"), Task())
        weights = model.state_dict()
        exported = their_weights(weights, list(range(32768)), heads=12, factor=0.125)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[size]
    if size == "1x11":
        assert len(exported) == 167 and len(list(model.parameters())) == 150 + 2 * 16  # query, key and value apart
        assert sum(value.numel() * value.element_size() for value in exported.values()) == 755_347_460


def test_a_model_of_our_own_is_exported_and_read_again(tmp_path: Path) -> None:
    sizes = {"encoder_layers": 2, "encoder_embed_dim": 16, "encoder_attention_heads": 2, "max_positions": 20}
    convert_own(tmp_path, **sizes)
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())["arch"]
    assert (config["intermed_type"], config["intermed_size"], config["intermed_depth"]) == ("fff", 4, 9)
    assert config["embedding"]["vocab_size"] == 31 and config["embedding"]["max_seq_length"] == 20
    special = {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": 30}
    hub = to_fairseq(tmp_path / "theirs", tmp_path / "again", special)
    assert_same(hub.model.state_dict(), load(tmp_path / "ours" / "model.pt")["model"])
    for key, value in (("positions", "learned"), ("linear_bias", True), ("pooling", "masked_mean")):
        with pytest.raises(CheckpointError, match=f"an UltraFastBERT cannot be this model: it has {key}={value}"):
            convert_own(tmp_path, **sizes, **{key: value})


def convert_own(tmp_path: Path, **settings: Any) -> None:
    """A model of this project, trained on nothing, to a folder ``theirs``."""
    from fairseq.checkpoint.schema import portable
    from fairseq.dataclass.build import build_config
    from fairseq.dataclass.state import config_to_state
    from tests.unit.roberta import Task as Small

    cfg = build_config({"task": "masked_lm", "model": {"_name": "ultrafastbert_4x9", **settings}})
    model = build_model(cfg.model, Small())
    shutil.rmtree(tmp_path / "ours", ignore_errors=True)
    (tmp_path / "ours").mkdir()
    state = {"args": None, "cfg": config_to_state(cfg), "model": model.state_dict()}
    torch.save(portable(state), tmp_path / "ours" / "model.pt")
    convert_checkpoint("fairseq", "ultrafastbert", tmp_path / "ours", tmp_path / "theirs")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": {"rotary_embedding": True}}, "attention.rotary_embedding is True in config.json"),
        ({"attention": {"num_attention_heads": 5}}, "has 5 attention heads and the width 16"),
        ({"attention": None}, "does not describe an UltraFastBERT"),
        ({"intermed_type": "moe"}, "intermed_type is 'moe'"),
        ({"nonlin": "GELUglu"}, "nonlin is 'GELUglu' in config.json, but only GELU, ReLU"),
        ({"hidden_size": 8}, "does not fit the model"),
        ({"num_transformer_layers": None}, "does not describe an UltraFastBERT"),
    ],
)
def test_models_of_other_kinds(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(DATA / "ff", source)
    config = json.loads((source / "config.json").read_text())
    for key, value in change.items():
        config["arch"][key] = {**config["arch"][key], **value} if isinstance(value, dict) else value
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        to_fairseq(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_of_other_kinds(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(DATA / "ff", source)
    weights = load_file(source / "model.safetensors")
    for change, message in (
        ({DECODER: weights[DECODER] + 1}, "differ, but this model has one matrix"),
        ({"encoder.layers.0.gate": torch.ones(1)}, "no such weights are known .*: encoder.layers.0.gate"),
        (
            {"encoder.layers.0.attn.self_attention.norm_factor": torch.tensor(1.0)},
            "scale their attention .* differently",
        ),
    ):
        save_file({**weights, **change}, source / "model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            to_fairseq(source, tmp_path / "out")
    save_file(weights, source / "model.safetensors")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot convert .*file"):
        to_fairseq(source, tmp_path / "file")
    (source / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="damaged or not in safetensors format"):
        to_fairseq(source, tmp_path / "out")
    (source / "model.safetensors").unlink()
    with pytest.raises(DataNotFoundError, match="there is no model.safetensors or pytorch_model.bin"):
        to_fairseq(source, tmp_path / "out")


def tokenizer_file(path: Path) -> None:
    """Word pieces with ids of special tokens out of order, beside ``<s>`` and ``</s>`` that mean nothing, cut and padded."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    special = ["<mask>", "<s>", "<cls>", "<unk>", "</s>", "<sep>", "<pad>"]
    pieces = [*special, *"abcdefgh", *(f"##{letter}" for letter in "abcdefgh"), "cab", "##bed", ".", ","]
    tokenizer = Tokenizer(models.WordPiece({piece: row for row, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(special)
    tokenizer.enable_truncation(6)
    tokenizer.enable_padding(length=6, pad_id=6, pad_token="<pad>")
    tokenizer.save(str(path))


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(DATA / "ff", source)
    tokenizer_file(source / "tokenizer.json")
    out = tmp_path / "out"
    convert_checkpoint("ultrafastbert", "fairseq", source, out)
    hub = RobertaModel.from_pretrained(str(out), "model.pt", str(out), bpe="hf_tokenizer").eval()
    dictionary = hub.task.source_dictionary
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert len(dictionary) == 64 and dictionary.index("<mask>") == 63
    listed = [line.split()[0] for line in (out / "dict.txt").read_text().splitlines()]
    assert len(listed) == 59 and not {"<s>", "<mask>", "0", "2", "3", "5", "6"} & set(listed)
    assert {"1", "4"} <= set(listed)  # <s> and </s> are symbols like any other there
    for text in ("a cab, bed.", "Abcdefgh abc cabbed " * 3):
        ids = hub.encode(text)
        assert dictionary.unk() not in ids and len(ids) > 6
        assert hub.decode(ids).replace(" ", "") == text.lower().replace(" ", "")
    weights, embedded = load_file(source / "model.safetensors"), hub.model.encoder.sentence_encoder.embed_tokens.weight
    for symbol, row in (("<s>", 2), ("</s>", 5), ("<pad>", 6), ("<unk>", 3), ("<mask>", 0), ("1", 1), ("63", 63)):
        assert torch.equal(embedded[dictionary.index(symbol)], weights[EMBEDDING][row])
    convert_checkpoint("fairseq", "ultrafastbert", out, tmp_path / "back")
    assert_same(load_file(tmp_path / "back" / "model.safetensors"), weights)
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    # what special_tokens_map.json says goes before the usual spellings, and --special before that
    (source / "special_tokens_map.json").write_text(json.dumps({"cls_token": {"content": "<s>"}}))
    convert_checkpoint("ultrafastbert", "fairseq", source, tmp_path / "other", {"sep": 4})
    origin = json.loads((tmp_path / "other" / "conversion.json").read_text())
    assert origin["special"] == {"cls": 1, "pad": 6, "sep": 4, "unk": 3, "mask": 0}


def test_special_tokens(tmp_path: Path) -> None:
    assert parse_special("cls=7, mask=3,") == {"cls": 7, "mask": 3} and parse_special("") == {}
    for text in ("bos=1", "cls", "cls=-1", "cls=x"):
        with pytest.raises(ConfigError, match=r"--special wants ids as in cls=I,pad=I"):
            parse_special(text)
    with pytest.raises(
        ConfigError, match=r"without a tokenizer.json or vocab.txt does not say .* unk, mask .* --special unk=I,mask=I"
    ):
        to_fairseq(DATA / "ff", tmp_path / "out", {"cls": 0, "pad": 1, "sep": 2})
    for change in ({"mask": 64}, {"mask": 0}):
        with pytest.raises(CheckpointError, match="ids of their own from 0 to 63"):
            to_fairseq(DATA / "ff", tmp_path / "out", {**SPECIAL, **change})
    order = our_order({"cls": 5, "pad": 0, "sep": 2, "unk": 3, "mask": 1}, 7)
    assert order == [5, 0, 2, 3, 4, 6, 1]
    table = torch.randn(7, 2)
    assert torch.equal(to_theirs(to_ours(table, order), order), table)


def test_the_command(tmp_path: Path) -> None:
    words = ["--from", "ultrafastbert", "--to", "fairseq", DATA / "ff", tmp_path / "out"]
    done = run_command("convert", *words, "--special", "cls=1,pad=0,sep=2,unk=3,mask=4")
    assert done.stdout == f"wrote {tmp_path / 'out'} (fairseq)\n" and (tmp_path / "out" / "model.pt").is_file()
    done = run_command("convert", *words, expect=2)
    assert done.stderr.startswith("fairseq-convert: error: ") and len(done.stderr.splitlines()) == 1
    with pytest.raises(ConfigError, match="is the folder of the input; choose another one"):
        convert_checkpoint("fairseq", "ultrafastbert", tmp_path / "out", tmp_path / "out")
    with pytest.raises(ConfigError, match="unknown format 'ultrafastbart'; did you mean 'ultrafastbert'"):
        convert_checkpoint("ultrafastbart", "fairseq", DATA / "ff", tmp_path / "x")
    with pytest.raises(DataNotFoundError, match="to convert"):
        convert_checkpoint("fairseq", "ultrafastbert", tmp_path / "gone", tmp_path / "x")
