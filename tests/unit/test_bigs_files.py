"""Folders of BiGS: there and back, settings, word pieces, special tokens, what cannot be converted."""

from __future__ import annotations

import argparse
import json
import logging
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fairseq.checkpoint.safe_load import load
from fairseq.errors import CheckpointError, ConfigError, DataNotFoundError
from fairseq.interop.bigs import FLAX
from fairseq.interop.convert import convert_checkpoint
from fairseq.interop.flax_file import decode_arrays, encode_arrays
from fairseq.models import build_model
from fairseq.models.roberta import RobertaModel
from tests.bigs import SPECIAL, config, converted, flax_folder, golden, our_rows, torch_folder, torch_weights
from tests.common import run_command


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key


@pytest.mark.parametrize("pre_norm", [True, False])
def test_flax_there_and_back(pre_norm: bool, tmp_path: Path) -> None:
    source = flax_folder(tmp_path / "source", pre_norm=pre_norm)
    hub = converted("bigs-flax", source, tmp_path / "out")
    assert hub.model.args.encoder_normalize_before is pre_norm and hub.model.args.bigs_padding == "leak"
    convert_checkpoint("fairseq", "bigs-flax", tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back" / FLAX).read_bytes() == (source / FLAX).read_bytes()
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == json.loads(
        (source / "config.json").read_text()
    )


@pytest.mark.parametrize("pooler", [True, False])
def test_torch_there_and_back(pooler: bool, tmp_path: Path) -> None:
    found = golden()
    more = {f"bigs.pooler.dense.{leaf}": found[f"pooler.{leaf}"] for leaf in ("weight", "bias")} if pooler else {}
    source = torch_folder(tmp_path / "source", more)
    converted("bigs-torch", source, tmp_path / "out")
    convert_checkpoint("fairseq", "bigs-torch", tmp_path / "out", tmp_path / "back")
    assert_same(load_file(tmp_path / "back" / "model.safetensors"), load_file(source / "model.safetensors"))
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config()


def test_an_untied_head_and_other_settings(tmp_path: Path) -> None:
    own = torch.randn(96, 28)
    changes = {"tie_word_embeddings": False, "hidden_act": "swish", "pooler_type": "mean", "classifier_dropout": 0.3}
    source = torch_folder(tmp_path / "source", {"cls.predictions.decoder.weight": own}, **changes)
    model = converted("bigs-torch", source, tmp_path / "out").model
    head, args = model.encoder.lm_head, model.args
    assert torch.equal(head.weight[our_rows()], own) and head.activation_fn is torch.nn.functional.silu
    assert (args.pooling, args.pooler_dropout, args.dropout, args.max_positions) == ("mean", 0.3, 0.1, 48)
    for program in ("torch", "flax"):
        convert_checkpoint("fairseq", f"bigs-{program}", tmp_path / "out", tmp_path / program)
        again = converted(f"bigs-{program}", tmp_path / program, tmp_path / f"{program}-out").model
        assert_same(again.state_dict(), model.state_dict())
    assert json.loads((tmp_path / "torch" / "config.json").read_text())["hidden_act"] == "swish"


def test_between_the_programs_and_without_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A bare encoder; PyTorch's file in Flax; what both say of their differences."""
    source = torch_folder(tmp_path / "source", pre_norm=False)
    bare = {key.removeprefix("bigs."): value for key, value in torch_weights().items() if key.startswith("bigs.")}
    save_file(bare, source / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        hub = converted("bigs-torch", source, tmp_path / "out")
        convert_checkpoint("fairseq", "bigs-flax", tmp_path / "out", tmp_path / "flax")
    for message in ("exact GELU", "pre_norm is false", "untrained one", "activation gelu_accurate within its blocks"):
        assert message in caplog.text
    assert hub.model.args.encoder_normalize_before and hub.model.args.bigs_spectrum == "lin"
    arrays = decode_arrays((tmp_path / "flax" / FLAX).read_bytes())
    assert {path.split("/")[0] for path in arrays} == {"s4_bert"}
    assert json.loads((tmp_path / "flax" / "config.json").read_text())["pre_norm"] is True


def test_arrays_of_flax() -> None:
    arrays = {
        "a/b/c": torch.randn(3, 5), "a/b/d": torch.zeros(0, 2), "a/e": torch.tensor(3.5).double(),
        "n": torch.arange(70000).to(torch.int32), "x" * 40: torch.randn(4, 64).bfloat16(), "h": torch.ones(200).half(),
    }  # fmt: skip
    arrays |= {f"many/{number}": torch.tensor([number]) for number in range(20)}
    data = encode_arrays(arrays)
    assert_same(decode_arrays(data), arrays)
    for cut in (0, 1, len(data) // 2, len(data) - 1):
        with pytest.raises(CheckpointError, match="cut off"):
            decode_arrays(data[:cut])
    array = encode_arrays({"x": torch.ones(2)})
    for wrong, message in (
        (b"\xc1", "no value begins with the byte 0xc1"),
        (b"\x05", "does not begin with a map"),
        (b"\x81\xa1x\x05", "x is no array, but 5"),
        (b"\x81\xa1x" + b"\x91" * 100 + b"\x00", "nested too deeply"),
        (b"\x81\x90\x05", "no flax model"),
        (b"\x81\xa1\xff\x05", "no flax model"),
        (b"\x81\xa1x\xd4\x02\x00", "extension of type 2"),
        (b"\x81\xa1x\x81\xb9__msgpack_chunked_array__\xc3", "x is an array of more than a gigabyte"),
        (array.replace(b"float32", b"floatXX"), "unknown type 'floatXX'"),
        (array.replace(b"\x91\x02", b"\x91\x03"), "array of 8 bytes, but its shape"),
        (array.replace(b"\x91\x02", b"\x91\xff"), "array of 8 bytes, but its shape"),
        (b"\x81\xa1x\xdf" + struct.pack(">I", 2**32 - 1), "cut off"),
    ):
        with pytest.raises(CheckpointError, match=message):
            decode_arrays(wrong)


PIECES = ["[PAD]", "[unused0]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "the", "goal", "of", "life", "is", "##ing", "."]


def test_word_pieces(tmp_path: Path) -> None:
    source = torch_folder(tmp_path / "source")
    pieces = [*PIECES, *(f"w{row}" for row in range(len(PIECES), 95))]
    (source / "vocab.txt").write_text("\n".join(pieces) + "\n")
    convert_checkpoint("bigs-torch", "fairseq", source, tmp_path / "out")
    hub = RobertaModel.from_pretrained(str(tmp_path / "out"), "model.pt", str(tmp_path / "out"), bpe="bert").eval()
    dictionary = hub.task.source_dictionary
    assert len(dictionary) == 96 and dictionary.index("<mask>") == 95 and dictionary[94] == "madeupword0095"
    embedded, weights = hub.model.encoder.sentence_encoder.embed_tokens.weight, torch_weights()
    table = weights["bigs.embeddings.word_embeddings.weight"]
    for symbol, row in (("<s>", 2), ("<pad>", 0), ("</s>", 3), ("<unk>", 4), ("<mask>", 5), ("life", 9), ("##ing", 11)):
        assert torch.equal(embedded[dictionary.index(symbol)], table[row])
    ids = hub.encode("The goal of LIFE is unknown.")
    assert [dictionary[i] for i in ids] == ["<s>", "the", "goal", "of", "life", "is", "<unk>", ".", "</s>"]
    (best, *_), usual = hub.fill_mask("The goal of life is [MASK]."), hub.fill_mask("The goal of life is <mask>.")
    assert best == usual[0] and best.text.startswith("The goal of life is") and best.text.endswith(".")
    for filled in usual:
        inside = filled.token.startswith("##")
        assert filled.text == f"The goal of life is{'' if inside else ' '}{filled.token.removeprefix('##')}."
    both = hub.fill_mask("The [MASK] of [MASK].")
    assert "[MASK]" in both[0][0].text and len(both) == 2
    done = run_command(
        "fill_mask", "--path", tmp_path / "out" / "model.pt", "--data", tmp_path / "out", "--bpe", "bert",
        "--bpe-vocab-file", tmp_path / "out" / "vocab.txt", "--topk", "1", "The goal of life is [MASK].",
    )  # fmt: skip
    assert best.token in done.stdout
    convert_checkpoint("fairseq", "bigs-torch", tmp_path / "out", tmp_path / "back")
    assert_same(load_file(tmp_path / "back" / "model.safetensors"), load_file(source / "model.safetensors"))
    assert (tmp_path / "back" / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()
    for lines, message in ((97 * ["x"], "97 lines, but the model only 96"), ([*pieces, "the"], "one piece twice")):
        (source / "vocab.txt").write_text("\n".join(lines))
        with pytest.raises(CheckpointError, match=message):
            convert_checkpoint("bigs-torch", "fairseq", source, tmp_path / "out", SPECIAL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert' in config.json, but must be 'BiGS'"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish' in config.json, but only gelu, gelu_new"),
        ({"hidden_size": None}, "does not describe a BiGS"),
        ({"hidden_size": 30}, "does not fit the model"),
        ({"architectures": ["FlaxBiGSForSequenceClassification"]}, "the weights lack bigs.pooler.dense.weight"),
    ],
)
def test_models_of_other_kinds(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        converted("bigs-flax", flax_folder(tmp_path / "source", **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_lack_something(tmp_path: Path) -> None:
    source = flax_folder(tmp_path / "source")
    with pytest.raises(
        ConfigError, match=r"without a tokenizer.json or vocab.txt .* cls, sep, unk, mask .*--special cls="
    ):
        convert_checkpoint("bigs-flax", "fairseq", source, tmp_path / "out")
    (source / FLAX).write_bytes(encode_arrays({"s4_bert/embeddings/other": torch.ones(2)}))
    with pytest.raises(CheckpointError, match="are not those of a BiGS"):
        convert_checkpoint("bigs-flax", "fairseq", source, tmp_path / "out", SPECIAL)
    (source / FLAX).unlink()
    with pytest.raises(DataNotFoundError, match="there is no flax_model.msgpack"):
        convert_checkpoint("bigs-flax", "fairseq", source, tmp_path / "out", SPECIAL)
    other = torch_folder(tmp_path / "other", {"bigs.encoder.layer.0.attention.weight": torch.ones(2)})
    with pytest.raises(CheckpointError, match="no such weight is known of a BiGS: bigs.encoder.layer.0.attention"):
        convert_checkpoint("bigs-torch", "fairseq", other, tmp_path / "out", SPECIAL)


SIZES = {"encoder_layers": 2, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 24, "max_positions": 20}


def own_model(tmp_path: Path, arch: str = "bigs_128", **settings: Any) -> Path:
    """A model of this project, trained on nothing, as a folder."""
    from fairseq.checkpoint.schema import portable
    from fairseq.dataclass.build import build_config
    from fairseq.dataclass.state import config_to_state
    from tests.unit.roberta import Task

    cfg = build_config({"task": "masked_lm", "model": {"_name": arch, **SIZES, **settings}})
    folder = tmp_path / "ours"
    folder.mkdir(exist_ok=True)
    model = build_model(cfg.model, Task())
    state = {"args": None, "cfg": config_to_state(cfg), "model": model.state_dict()}
    torch.save(portable(state), folder / "model.pt")
    return folder


def test_a_model_of_our_own_is_exported_and_read_again(tmp_path: Path) -> None:
    ours = own_model(tmp_path)
    for program in ("flax", "torch"):
        convert_checkpoint("fairseq", f"bigs-{program}", ours, tmp_path / program)
        found = json.loads((tmp_path / program / "config.json").read_text())
        assert found["architectures"] == [f"{'Flax' if program == 'flax' else ''}BiGSForMaskedLM"]
        assert (found["vocab_size"], found["pad_token_id"], found["scaling"]) == (31, 1, "hippo")
        special = {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": 30}
        convert_checkpoint(f"bigs-{program}", "fairseq", tmp_path / program, tmp_path / f"{program}-out", special)
        assert_same(load(tmp_path / f"{program}-out" / "model.pt")["model"], load(ours / "model.pt")["model"])
    for settings, message in (
        ({"token_mixer": "self_attention", "channel_mixer": "feed_forward"}, "it has token_mixer=self_attention"),
        ({"final_norm": True}, "it has final_norm=True"),
        ({"learned_offset": 2}, "counted by column from row 0"),
        ({"positions": "none"}, "in Flax cannot be this model: it has positions=none"),
    ):
        with pytest.raises(CheckpointError, match=message):
            convert_checkpoint("fairseq", "bigs-flax", own_model(tmp_path, **settings), tmp_path / "x")
    with pytest.raises(CheckpointError, match="in PyTorch cannot be this model: it has encoder_normalize_before=False"):
        convert_checkpoint("fairseq", "bigs-torch", own_model(tmp_path, encoder_normalize_before=False), tmp_path / "x")


class Published:
    """A dictionary of the size of the published ones."""

    class Symbols:
        def __len__(self) -> int:
            return 30522

        def pad(self) -> int:
            return 1

    source_dictionary = Symbols()

    def max_positions(self) -> int:
        return 128


@pytest.mark.parametrize(
    ("length", "count"), [(128, 346314134), (512, 346707350), (1024, 347231638), (4096, 350377366)]
)
def test_sizes_of_the_published_models(length: int, count: int) -> None:
    with torch.device("meta"):
        model = build_model(argparse.Namespace(arch=f"bigs_{length}"), Published())
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert model.max_positions() == length


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("rows", [0, 0, 1], "rows must be the numbers 0 to 95, each once"),
        ("rows", "x", "rows must be a list"),
        ("rows", [0.5], r"rows\[0\] must be an integer"),
        ("special", {"cls": -1}, "special.cls must be an integer of at least 0"),
        ("config", 5, "config must be a dictionary, but is 5"),
        ("kind", 5, "kind must be a text, but is 5"),
    ],
)
def test_a_damaged_file_of_the_way_back(key: str, value: Any, sentence: str, tmp_path: Path) -> None:
    convert_checkpoint("bigs-flax", "fairseq", flax_folder(tmp_path / "theirs"), tmp_path / "ours", SPECIAL)
    stored = tmp_path / "ours" / "conversion.json"
    stored.write_text(json.dumps({**json.loads(stored.read_text()), key: value}))
    with pytest.raises(CheckpointError, match=f"conversion.json is malformed: {sentence}"):
        convert_checkpoint("fairseq", "bigs-flax", tmp_path / "ours", tmp_path / "back")


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("tokenizer.json", {"model": 5}, "the files of the tokenizer in .* are damaged"),
        ("tokenizer.json", {"added_tokens": [{"id": 0}]}, "damaged: KeyError"),
        ("tokenizer.json", {"added_tokens": [{"id": "x", "content": "[CLS]"}]}, "damaged: ValueError"),
        ("special_tokens_map.json", {"cls_token": {}}, "damaged: KeyError"),
        ("config.json", {**config(), "pad_token_id": "x"}, "special tokens need ids that are integers"),
        ("config.json", {**config(), "architectures": 5}, "architectures is 5 in config.json"),
        ("config.json", {**config(), "hidden_size": float("inf")}, "does not describe a BiGS: OverflowError"),
    ],
)
def test_malformed_files_of_a_folder(file: str, content: Any, sentence: str, tmp_path: Path) -> None:
    source = torch_folder(tmp_path / "theirs")
    (source / file).write_text(json.dumps(content))
    special = {} if "token" in file else {key: value for key, value in SPECIAL.items() if key != "pad"}
    with pytest.raises(CheckpointError, match=sentence):
        convert_checkpoint("bigs-torch", "fairseq", source, tmp_path / "out", special)


def test_a_vocabulary_that_is_no_text(tmp_path: Path) -> None:
    source = torch_folder(tmp_path / "theirs")
    (source / "vocab.txt").write_bytes(b"[PAD]\n\xff\xfe\n")
    with pytest.raises(CheckpointError, match="vocab.txt is not UTF-8 text|malformed: UnicodeDecodeError"):
        convert_checkpoint("bigs-torch", "fairseq", source, tmp_path / "out", SPECIAL)
