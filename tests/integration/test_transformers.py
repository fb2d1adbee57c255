"""Folders for Transformers: any encoder without this package, RoBERTa both ways, BERT read, tokenizers and cards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from fairseq.errors import CheckpointError, ConfigError
from fairseq.interop.convert import convert_checkpoint
from fairseq.models.roberta import RobertaModel
from tests.common import run_command
from tests.interop import TEXT, folder_with, same_weights, weights_in
from tests.unit.roberta import KINDS, some_tokens

transformers = pytest.importorskip("transformers")

MIXED: dict[str, dict[str, Any]] = {  # no preset has these
    "bigs, clap, zero masking": {"_name": "roberta_bigs", "lm_head": "clap", "zero_masking": True},
    "fff in convolutions": {"_name": "roberta_conv", "channel_mixer": "fff", "fff_depth": 2, "fff_trees": 2},
    "sinusoidal, prenorm, product": {
        "_name": "roberta",
        "positions": "sinusoidal",
        "lm_head": "product",
        "encoder_normalize_before": True,
        "type_vocab_size": 2,
    },
}
# Runs where this package cannot be imported: folder -> largest difference of logits from those stored in it.
ELSEWHERE = """
import json, sys
sys.modules["fairseq"] = None
import torch, transformers
found = {}
for folder in sys.argv[1:]:
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
    stored = torch.load(folder + "/../" + folder.split("/")[-1] + ".pt")
    with torch.no_grad():
        logits = model(stored["ids"], attention_mask=(stored["ids"] != 1).long()).logits
    kept = stored["ids"] != 1
    found[folder] = float((logits - stored["logits"])[kept].abs().max())
print(json.dumps(found))
"""


def run_elsewhere(script: str, *args: Any, cwd: Path) -> Any:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"HF_HOME": str(cwd / "hf"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", script, *map(str, args)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_kind_of_preset_runs_without_this_package(tmp_path: Path) -> None:
    folders = []
    for number, settings in enumerate([*({"_name": name} for name in KINDS), *MIXED.values()]):
        zero = settings.get("zero_masking", False) or "zero" in settings["_name"]
        small = {"encoder_layers": 2, **settings}
        model = folder_with(tmp_path / "ours", small, omit_mask=zero)
        convert_checkpoint("fairseq", "hf-auto", tmp_path / "ours", tmp_path / str(number))
        ids = some_tokens(2, 70)
        with torch.no_grad():
            torch.save({"ids": ids, "logits": model(ids)[0]}, tmp_path / f"{number}.pt")
        convert_checkpoint("hf-auto", "fairseq", tmp_path / str(number), tmp_path / "back")
        assert same_weights(weights_in(tmp_path / "ours"), weights_in(tmp_path / "back")), settings
        folders.append(str(tmp_path / str(number)))
    found = run_elsewhere(ELSEWHERE, *folders, cwd=tmp_path)
    assert len(found) == len(KINDS) + len(MIXED) and all(error < 1e-4 for error in found.values()), found


def byte_level(folder: Path) -> tuple[list[str], dict[str, Any]]:
    """The files of a byte-level BPE in ``folder``, its dictionary symbols, the settings."""
    from tokenizers.implementations import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(TEXT * 5, vocab_size=300, min_frequency=1, show_progress=False)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_model(str(folder))
    (folder / "encoder.json").write_text((folder / "vocab.json").read_text())
    (folder / "vocab.bpe").write_text((folder / "merges.txt").read_text())
    symbols = [str(idx) for idx in sorted(tokenizer.get_vocab().values(), key=lambda idx: (idx * 7) % 301)]
    return symbols, {
        "_name": "gpt2",
        "gpt2_encoder_json": str(folder / "encoder.json"),
        "gpt2_vocab_bpe": str(folder / "vocab.bpe"),
    }


def other_bpes(folder: Path) -> dict[str, tuple[list[str], dict[str, Any]]]:
    import sentencepiece
    from tokenizers.implementations import BertWordPieceTokenizer

    symbols, _ = byte_level(folder)
    found: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for prefix in (False, True):
        own = {"bpe_vocab": str(folder / "vocab.json"), "bpe_merges": str(folder / "merges.txt")}
        found[f"bytes {prefix}"] = symbols, {"_name": "hf_byte_bpe", **own, "bpe_add_prefix_space": prefix}
    pieces = BertWordPieceTokenizer()
    pieces.train_from_iterator(TEXT * 5, vocab_size=120, min_frequency=1, show_progress=False)
    pieces.save_model(str(folder))
    listed = [piece for piece in pieces.get_vocab() if piece not in ("[CLS]", "[SEP]", "[PAD]", "[MASK]")]
    found["bert"] = sorted(listed), {"_name": "bert", "bpe_vocab_file": str(folder / "vocab.txt")}
    pieces.save(str(folder / "tokenizer.json"))
    numbers = [str(idx) for piece, idx in sorted(pieces.get_vocab().items()) if piece in listed and piece != "[UNK]"]
    found["tokenizer.json"] = numbers, {"_name": "hf_tokenizer", "hf_tokenizer_file": str(folder / "tokenizer.json")}
    (folder / "text").write_text("\n".join(TEXT * 5))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "sp"), vocab_size=50, minloglevel=2
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sp.model"))
    kept = [model.IdToPiece(idx) for idx in range(3, len(model))]
    found["sentencepiece"] = kept[::-1], {"_name": "sentencepiece", "sentencepiece_model": str(folder / "sp.model")}
    return found


def test_tokenizers(tmp_path: Path) -> None:
    kinds = {"gpt2": byte_level(tmp_path / "bpe"), **other_bpes(tmp_path / "bpe")}
    for name, (symbols, bpe) in kinds.items():
        folder_with(tmp_path / "ours", {"_name": "roberta"}, symbols, bpe)
        target = tmp_path / name.replace(" ", "")
        convert_checkpoint("fairseq", "hf-roberta", tmp_path / "ours", target)
        tokenizer = transformers.AutoTokenizer.from_pretrained(target)
        hub = RobertaModel.from_pretrained(str(tmp_path / "ours")).eval()
        again = RobertaModel.from_pretrained(str(target)).eval()
        for text in TEXT:
            wanted = hub.encode(text).tolist()
            assert tokenizer(text)["input_ids"] == wanted, (name, text)
            assert again.encode(text).tolist() == wanted, (name, text)
        assert tokenizer(TEXT[0], TEXT[1])["input_ids"] == hub.encode(TEXT[0], TEXT[1]).tolist(), name
        filled = transformers.pipeline("fill-mask", model=str(target), tokenizer=str(target), top_k=1)
        best = filled("The Queen <mask> nothing." if name != "tokenizer.json" else "The Queen [MASK] nothing.")[0]
        ours = hub.fill_mask("The Queen <mask> nothing.", topk=3)
        assert best["score"] == pytest.approx(max(entry[1] for entry in ours), abs=1e-5), name


def test_xlmr_without_tokenizer_json(tmp_path: Path) -> None:
    symbols, bpe = other_bpes(tmp_path / "bpe")["sentencepiece"]
    folder_with(tmp_path / "ours", {"_name": "roberta"}, symbols[::-1], bpe)  # in the order of the model, as XLM-R's
    convert_checkpoint("fairseq", "hf-roberta", tmp_path / "ours", tmp_path / "theirs")
    (tmp_path / "theirs/tokenizer.json").unlink()
    (tmp_path / "theirs/sentencepiece.bpe.model").write_bytes((tmp_path / "bpe/sp.model").read_bytes())
    wanted = RobertaModel.from_pretrained(str(tmp_path / "ours"))
    found = RobertaModel.from_pretrained(str(tmp_path / "theirs"))
    for text in TEXT:
        assert found.encode(text).tolist() == wanted.encode(text).tolist()


def test_a_dictionary_that_lacks_pieces_gets_no_tokenizer(tmp_path: Path, caplog: Any) -> None:
    symbols, bpe = byte_level(tmp_path / "bpe")
    folder_with(tmp_path / "ours", {"_name": "roberta"}, symbols[:50], bpe)
    convert_checkpoint("fairseq", "hf-auto", tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs/tokenizer.json").exists() and "are not in dict.txt" in caplog.text
    assert "AutoTokenizer" not in (tmp_path / "theirs/README.md").read_text()


@pytest.mark.parametrize("kind", ["masked", "classes"])
def test_roberta_both_ways(kind: str, tmp_path: Path) -> None:
    heads = {} if kind == "masked" else {"sentence_classification_head": 3}
    model = folder_with(tmp_path / "ours", {"_name": "roberta"}, double=True, heads=heads)
    run_command("convert", "--from", "fairseq", "--to", "hf-roberta", "ours", "theirs", cwd=tmp_path)
    assert not any(path.suffix in (".bin", ".pt") for path in (tmp_path / "theirs").iterdir())
    cls = transformers.AutoModelForMaskedLM if kind == "masked" else transformers.AutoModelForSequenceClassification
    theirs = cls.from_pretrained(tmp_path / "theirs", torch_dtype=torch.float64).eval()
    ids = some_tokens(2, 30)
    with torch.no_grad():
        found = theirs(ids, attention_mask=(ids != 1).long()).logits
        wanted = model(ids)[0] if kind == "masked" else model(ids, True, False, next(iter(heads)))[0]
    if kind == "masked":
        found, wanted = found[ids != 1], wanted[ids != 1]
    assert torch.allclose(found, wanted, atol=1e-9)
    convert_checkpoint("hf-roberta", "fairseq", tmp_path / "theirs", tmp_path / "back")
    assert same_weights(weights_in(tmp_path / "ours"), weights_in(tmp_path / "back"))
    theirs.save_pretrained(tmp_path / "saved")
    convert_checkpoint("hf-roberta", "fairseq", tmp_path / "saved", tmp_path / "again")
    ours, again = weights_in(tmp_path / "ours"), weights_in(tmp_path / "again")
    kept = [key for key in ours if kind == "masked" or "lm_head" not in key]  # their classifier has no masked-LM head
    assert same_weights({key: ours[key] for key in kept}, {key: again[key] for key in kept})


def perturbed(model: Any) -> Any:
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.double().eval()


BERT_WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *(f"a{number}" for number in range(35))]
SMALL: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20
}  # fmt: skip


@pytest.mark.parametrize("kind", ["Roberta", "Bert"])
def test_untied_models_and_old_names_are_read(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    config = getattr(transformers, f"{kind}Config")(**SMALL, max_position_embeddings=50, tie_word_embeddings=False)
    theirs = perturbed(getattr(transformers, f"{kind}ForMaskedLM")(config))
    theirs.save_pretrained(tmp_path / "folder")
    if kind == "Bert":
        (tmp_path / "folder/vocab.txt").write_text("\n".join(BERT_WORDS) + "\n")
        file = tmp_path / "folder/model.safetensors"
        weights = safetensors.torch.load_file(file)
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, name in old.items():
            weights = {key.replace(new, name): value for key, value in weights.items()}
        safetensors.torch.save_file(weights, file)
    hub = RobertaModel.from_pretrained(str(tmp_path / "folder")).eval()
    hub.model.double()
    order = [0, 1, 2, 3, 5, 9] if kind == "Roberta" else [1, 0, 2, 3, 6, 10]  # the same symbols in their numbering
    ours = torch.tensor([[0, 5, 9, 2]])
    other = torch.tensor([[order[0], order[4], order[5], 2]])
    with torch.no_grad():
        wanted, found = theirs(other).logits, hub.model(ours)[0]
    rows = slice(5, -1) if kind == "Bert" else slice(4, -1)
    assert torch.allclose(found[..., 4:-1], wanted[..., rows] if kind == "Roberta" else wanted[..., 5:], atol=1e-6)
    assert hub.model.args.untie_weights_roberta


def test_folders_of_transformers_keep_their_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    symbols, bpe = byte_level(tmp_path / "bpe")
    folder_with(tmp_path / "ours", {"_name": "roberta"}, symbols, bpe)
    convert_checkpoint("fairseq", "hf-roberta", tmp_path / "ours", tmp_path / "one")
    monkeypatch.chdir(tmp_path / "bpe")
    (tmp_path / "bpe/tokenizer.json").write_text("{}")  # another one in the working directory
    convert_checkpoint("hf-roberta", "hf-auto", tmp_path / "one", tmp_path / "two")
    convert_checkpoint("hf-auto", "sentence-transformers", tmp_path / "two", tmp_path / "three")
    wanted = RobertaModel.from_pretrained(str(tmp_path / "ours"))
    for name in ("one", "two", "three"):
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / name)
        assert all(tokenizer(text)["input_ids"] == wanted.encode(text).tolist() for text in TEXT), name
    done = run_command("fill-mask", "--path", tmp_path / "two", "--cpu", "The Queen <mask> nothing.", cwd=tmp_path)
    assert "The Queen" in done.stdout


def test_what_transformers_has_trained_comes_back(tmp_path: Path) -> None:
    import fairseq.hf  # registers the classes

    folder_with(tmp_path / "ours", {"_name": "roberta_alibi_clap"}, omit_mask=False)
    convert_checkpoint("fairseq", "hf-auto", tmp_path / "ours", tmp_path / "theirs")
    cls = transformers.AutoModelForSequenceClassification
    model = cls.from_pretrained(tmp_path / "theirs", num_labels=3).eval()
    ids = torch.tensor([[0, 7, 9, 2]])
    assert model(ids, labels=torch.ones(1, 3)).loss.item() == pytest.approx(
        torch.nn.functional.binary_cross_entropy_with_logits(model(ids).logits, torch.ones(1, 3)).item()
    )
    model.save_pretrained(tmp_path / "trained")
    convert_checkpoint("hf-auto", "fairseq", tmp_path / "trained", tmp_path / "back")
    hub = RobertaModel.from_pretrained(str(tmp_path / "back"), bpe=None).eval()
    found = hub.predict("sentence_classification_head", ids, return_logits=True)
    assert torch.allclose(found, model(ids).logits, atol=1e-5)
    assert fairseq.hf.FairseqModel.accepts_loss_kwargs is False
    wider = cls.from_pretrained(tmp_path / "trained", num_labels=5, ignore_mismatched_sizes=True)
    assert wider(ids).logits.shape == (1, 5)
    with pytest.raises(NotImplementedError, match="vocabulary"):
        model.resize_token_embeddings(50)


def test_what_roberta_cannot_be(tmp_path: Path) -> None:
    folder_with(tmp_path / "ours", {"_name": "roberta_alibi"})
    with pytest.raises(CheckpointError, match="hf-auto takes any model"):
        convert_checkpoint("fairseq", "hf-roberta", tmp_path / "ours", tmp_path / "theirs")
    folder_with(tmp_path / "ours", {"_name": "roberta"}, omit_mask=True)
    with pytest.raises(CheckpointError, match="row for <mask>"):
        convert_checkpoint("fairseq", "hf-roberta", tmp_path / "ours", tmp_path / "theirs")
    transformers.RobertaForMaskedLM(transformers.RobertaConfig(**SMALL, hidden_act="relu")).save_pretrained(
        tmp_path / "relu"
    )
    with pytest.raises(CheckpointError, match="hidden_act is 'relu'"):
        convert_checkpoint("hf-roberta", "fairseq", tmp_path / "relu", tmp_path / "back")
    with pytest.raises(ConfigError, match="hf-bert is only read"):
        convert_checkpoint("fairseq", "hf-bert", tmp_path / "ours", tmp_path / "theirs")


@pytest.mark.parametrize("kind", ["Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"])
def test_bert_is_read(kind: str, tmp_path: Path) -> None:
    sizes = {"vocab_size": 40, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "num_labels": 4}
    config = transformers.BertConfig(**sizes, intermediate_size=20, max_position_embeddings=50)
    torch.manual_seed(1)
    theirs = getattr(transformers, f"Bert{kind}")(config).double().eval()
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path / "bert")
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *(f"a{number}" for number in range(35))]
    (tmp_path / "bert/vocab.txt").write_text("\n".join(words) + "\n")
    hub = RobertaModel.from_pretrained(str(tmp_path / "bert")).eval()
    hub.model.double()
    text = "a3 a7 a30 a1"
    ids = hub.encode(text)
    other = torch.tensor([[1, *(words.index(word) for word in text.split()), 2]])
    types = (torch.arange(6) > 3).long()[None]
    with torch.no_grad():
        output = theirs(other, token_type_ids=types)
        features = hub.extract_features(ids[None], token_type_ids=types)
        if kind == "Model":
            assert torch.allclose(features, output[0], atol=1e-6)
        elif kind == "ForMaskedLM":
            logits = hub.model(ids[None], token_type_ids=types)[0]
            assert torch.allclose(logits[..., 4:-1], output.logits[..., 5:], atol=1e-6)
        else:
            name = "sentence" if "Sequence" in kind else "token"
            found = hub.predict(f"{name}_classification_head", ids[None], return_logits=True, token_type_ids=types)
            assert torch.allclose(found, output.logits, atol=1e-6)


def test_a_card_and_a_folder_for_sentence_embeddings(tmp_path: Path) -> None:
    folder_with(tmp_path / "ours", {"_name": "roberta_alibi"})
    words = "convert --from fairseq --to sentence-transformers --pooling first --no-normalize ours theirs".split()
    run_command(*words, cwd=tmp_path)
    card = (tmp_path / "theirs/README.md").read_text()
    assert (
        "attention bias: alibi" in card
        and "trust_remote_code=True" in card
        and "    model.encoder_alibi=true" in card
        and "fairseq-hydra-train" in card
    )
    modules = json.loads((tmp_path / "theirs/modules.json").read_text())
    assert [module["type"].rsplit(".")[-1] for module in modules] == ["Transformer", "Pooling"]
    assert json.loads((tmp_path / "theirs/1_Pooling/config.json").read_text())["pooling_mode_cls_token"] is True
    done = run_command(
        "convert", "--from", "fairseq", "--to", "hf-auto", "--pooling", "mean", "ours", "x", cwd=tmp_path, expect=None
    )
    assert done.returncode == 2 and "belong to --to sentence-transformers" in done.stderr


def test_classes_registered_by_this_package(tmp_path: Path) -> None:
    folder_with(tmp_path / "ours", {"_name": "roberta_bigs"}, heads={"sentence_classification_head": 3})
    convert_checkpoint("fairseq", "hf-auto", tmp_path / "ours", tmp_path / "theirs")
    script = """
import json, sys, torch, transformers, fairseq.hf
model = transformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
output = model(torch.tensor([[0, 7, 9, 2]]), labels=torch.tensor([1]))
output.loss.backward()
print(json.dumps([list(output.logits.shape), type(model).__module__, model.config.num_labels]))
"""
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "theirs")], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [[1, 3], "fairseq.portable.modeling", 3]
