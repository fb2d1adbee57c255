"""The kinds of files that users hand to the commands: good ones, how they are damaged, and a command that reads them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf

from fairseq.errors import FairseqError
from tests.bigs import SPECIAL, torch_folder
from tests.common import ROOT, tiny_data_bin, write_text
from tests.downstream import GPT2, dictionary_of_ids
from tests.faults.damage import Damage, any_of, of_bytes, of_json, of_lines, of_value
from tests.faults.data_kinds import make_described, validated
from tests.interop import folder_with
from tests.token_sets import squad, write_conll

DATA = ROOT / "tests" / "data"
DESCRIBED = ("dict.txt", "train.bin", "train.idx", "valid.bin", "valid.idx", "manifest.json")
MODEL = (
    "--cpu --task masked_lm --criterion masked_lm --arch roberta --encoder-layers 1 --encoder-embed-dim 16 "
    "--encoder-ffn-embed-dim 32 --encoder-attention-heads 2 --max-positions 40 --tokens-per-sample 40 --optimizer adam "
    "--lr 0.001 --batch-size 32 --num-workers 0 --log-format none --disable-validation"
).split()
LINES = [f"the man number {i} said that it is in and on it, isn't he?" for i in range(40)]


@dataclass(frozen=True)
class Kind:
    """``damage`` are the files (relative names) that are damaged, and how; ``answer`` reads the folder and gives what it found.

    ``checked``: whatever is not refused must give the same answer.
    """

    prepare: Callable[[Path], None]
    damage: Mapping[str, Damage]
    answer: Callable[[Path], str]
    checked: bool = False


def digest(value: Any) -> str:
    """A text that is the same for the same nested value of tensors, arrays and plain values."""
    if torch.is_tensor(value):
        array = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return f"{value.dtype}{tuple(value.shape)}{hashlib.sha256(array.tobytes()).hexdigest()}"
    if OmegaConf.is_config(value):
        return digest(OmegaConf.to_container(value, resolve=False))
    if isinstance(value, dict):
        return hashlib.sha256("".join(f"{key!r}:{digest(item)};" for key, item in value.items()).encode()).hexdigest()
    if isinstance(value, (list, tuple)):
        return hashlib.sha256("".join(map(digest, value)).encode()).hexdigest()
    return repr(value)


def files_digest(folder: Path) -> str:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".log")
    return digest([(str(path.relative_to(folder)), path.read_bytes()) for path in found])


def printed(call: Callable[..., Any], *words: object) -> str:
    """What the command ``call`` prints to standard output."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        call(argv=[str(word) for word in words])
    return output.getvalue()


# -- checkpoints ------------------------------------------------------------------------------------------------------


def make_checkpoint(folder: Path) -> None:
    from fairseq.cli import train

    data = tiny_data_bin(folder / "data-bin")
    train.cli_main(argv=[str(data), *MODEL, "--max-update", "2", "--save-dir", str(folder), "--no-epoch-checkpoints"])
    shutil.copyfile(data / "dict.txt", folder / "dict.txt")
    (folder / "checkpoint_last.pt").rename(folder / "model.pt")


def make_legacy_checkpoint(folder: Path) -> None:
    make_checkpoint(folder)
    state = torch.load(folder / "model.pt", weights_only=False)
    torch.save(state, folder / "model.pt", _use_new_zipfile_serialization=False)


def of_state(rng: random.Random, data: bytes) -> bytes:
    """A sound file with a value in it that should not be there."""
    state = torch.load(io.BytesIO(data), weights_only=False)
    part = rng.choice([*state, "cfg", "extra_state", None])
    if part is None:
        state = of_value(rng, state)
    else:
        state[part] = of_value(rng, state[part])
    stored = io.BytesIO()
    try:
        torch.save(state, stored)
    except (pickle.PicklingError, UnicodeEncodeError, RecursionError):  # cannot be stored: another one
        return data
    return stored.getvalue()


def read_checkpoint(folder: Path) -> str:
    """Everything in the file, and what each command makes of it; the first refusal is raised when all have been tried."""
    found, refusals = [], []
    for step in (_content, _filled, validate, _one_more_update, _converted):
        try:
            found.append(step(folder))
        except (FairseqError, SystemExit) as refusal:
            refusals.append(refusal)
    if refusals:
        raise refusals[0]
    return "\n".join(found)


def _content(folder: Path) -> str:
    from fairseq.checkpoint.reader import read

    return digest(read(folder / "model.pt"))


def _filled(folder: Path) -> str:
    from fairseq.cli import fill_mask

    words = ("--path", folder / "model.pt", "--bpe", "none", "--json", "--cpu", "w01 <mask> w03")
    return printed(fill_mask.cli_main, *words)


def _one_more_update(folder: Path) -> str:
    from fairseq.cli import train

    resume = ["--restore-file", folder / "model.pt", "--max-update", 3, "--no-save", "--save-dir", folder / "out"]
    printed(train.cli_main, folder / "data-bin", *MODEL, *resume)
    return ""


def _converted(folder: Path) -> str:
    from fairseq.cli import convert

    words = ("--from", "fairseq-alibi-clap", "--to", "fairseq-upstream", folder / "model.pt", folder / "upstream.pt")
    printed(convert.cli_main, *words)
    return digest(torch.load(folder / "upstream.pt", weights_only=False))


# -- data -------------------------------------------------------------------------------------------------------------


def validate(folder: Path) -> str:
    from fairseq.cli import validate
    from fairseq.cli.common import run_command
    from fairseq.dataclass.parser import get_validation_parser, parse_args_and_arch

    flags = "--batch-size 32 --cpu --log-format none --task masked_lm --valid-subset valid --num-workers 0".split()
    words = [str(folder / "data-bin"), "--path", str(folder / "model.pt"), *flags]

    def run() -> Any:
        given, typed = (
            parse_args_and_arch(get_validation_parser(), words, suppress_defaults=way) for way in (False, True)
        )
        return validate.main(given, typed)

    with contextlib.redirect_stdout(io.StringIO()):
        results = run_command("fairseq-validate", run)
    return repr({name: value for name, value in results["valid"].items() if name not in ("wps", "wall", "ups")})


def fill_mask(folder: Path) -> str:
    from fairseq.cli import fill_mask

    words = ("--path", folder / "model.pt", "--data", folder, "--bpe", "none", "--json", "--cpu", "w01 <mask> w03")
    return printed(fill_mask.cli_main, *words)


def make_texts(folder: Path) -> None:
    write_text(folder / "train.txt", LINES)
    dictionary_of_ids(folder)
    for path in (DATA / "gpt2_tiny").iterdir():
        shutil.copyfile(path, folder / path.name)


def preprocess(folder: Path, bpe: list[object], dictionary: str = "dict.txt") -> str:
    from fairseq.cli import preprocess

    words = ["--only-source", "--trainpref", folder / "train.txt", "--destdir", folder / "out", "--workers", 1]
    shutil.rmtree(folder / "out", ignore_errors=True)
    printed(preprocess.cli_main, *words, "--srcdict", folder / dictionary, "--no-progress-bar", *bpe)
    return files_digest(folder / "out")


def gpt2(folder: Path) -> list[object]:
    files = ["--gpt2-encoder-json", folder / "encoder.json", "--gpt2-vocab-bpe", folder / "vocab.bpe"]
    return ["--bpe", "gpt2", *files]


def make_tokenizer_json(folder: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer

    make_texts(folder)
    ByteLevelBPETokenizer(str(folder / "encoder.json"), str(folder / "vocab.bpe")).save(str(folder / "tokenizer.json"))


def make_word_pieces(folder: Path) -> None:
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] the man number ##ly said that it is in and on , ' ? isn ##t t he".split()
    write_text(folder / "vocab.txt", words)
    write_text(folder / "dict.txt", [f"{word} 1" for word in words])
    write_text(folder / "train.txt", LINES)


def make_sentencepiece(folder: Path) -> None:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_prefix=str(folder / "m"), vocab_size=36, minloglevel=2, num_threads=1
    )
    rows = (folder / "m.vocab").read_text(encoding="utf-8").splitlines()[3:]
    write_text(folder / "dict.txt", [row.split("\t")[0] + " 1" for row in rows])
    write_text(folder / "train.txt", LINES)


# -- datasets of tasks ------------------------------------------------------------------------------------------------


def make_tasks(folder: Path) -> None:
    dictionary_of_ids(folder)
    rows = [f"{i}\tThe man said {i}.\tIt is {i}.\t{('entailment', 'not_entailment')[i % 2]}" for i in range(8)]
    for split in ("train", "dev"):
        write_text(folder / f"RTE/RTE/{split}.tsv", ["index\tsentence1\tsentence2\tlabel", *rows])
        write_text(folder / f"plain/{split}.raw.input0", LINES[:8])
        write_text(folder / f"plain/{split}.label", ["good", "bad"] * 4)
        write_text(folder / f"squad/{split}.json", [json.dumps(squad(4, 1))])
    choices = [{"label": label, "text": f"it is {label}"} for label in "ABCDE"]
    asked = [
        {"answerKey": "AE"[i % 2], "id": str(i), "question": {"stem": "Who?", "choices": choices}} for i in range(8)
    ]
    story = {
        "id": "1",
        "article": "The man said it.",
        "questions": ["Who?"],
        "options": [["a", "b", "c", "d"]],
        "answers": ["A"],
    }
    for split, name in (("train", "train_rand_split"), ("dev", "dev_rand_split")):
        write_text(folder / f"commonsense_qa/{name}.jsonl", [json.dumps(item) for item in asked])
        for level in ("middle", "high"):
            write_text(folder / f"race/{split}/{level}/1.txt", [json.dumps(story)])
    header = ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label"
    for name in ("train", "val"):
        write_text(
            folder / f"swag/{name}.csv", [header, *(f"{i},v,1,s,One.,She,gold,a,b,c,d,{i % 4}" for i in range(8))]
        )
    (folder / "conll").mkdir()
    write_conll(folder / "conll", 20)


def preprocess_task(folder: Path, task: str, data: str, *more: object) -> str:
    from fairseq.cli import preprocess_task

    words = ["--task", task, "--data-dir", folder / data, "--dest", folder / "out", "--overwrite", "--workers", 1]
    shutil.rmtree(folder / "out", ignore_errors=True)
    printed(preprocess_task.cli_main, *words, "--srcdict", folder / "dict.txt", "--no-progress-bar", *GPT2, *more)
    return files_digest(folder / "out")


# -- settings ---------------------------------------------------------------------------------------------------------


def make_yaml(folder: Path) -> None:
    data = tiny_data_bin(folder / "data-bin")
    settings = yaml.safe_load((DATA / "config" / "baseline.yaml").read_text(encoding="utf-8"))
    settings["task"]["data"] = str(data)
    settings["optimization"] |= {"max_update": 1, "max_epoch": 1}  # one stops the run where the other is damaged
    settings["checkpoint"] = {"no_save": True}
    settings["dataset"]["disable_validation"] = True
    settings["common"]["log_format"] = "none"
    (folder / "run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")


def of_yaml(rng: random.Random, data: bytes) -> bytes:
    value = yaml.safe_load(data)
    key = rng.choice(("defaults", "hydra", None, None, None, None))
    if key:
        value[key] = of_value(rng, {"defaults": ["_self_", {"model": "x"}], "hydra": {"job": {"chdir": True}}}[key])
    else:
        value = of_value(rng, value)
    with contextlib.suppress(RecursionError, UnicodeEncodeError):
        return yaml.safe_dump(value).encode()
    return data


def hydra_train(folder: Path) -> str:
    from fairseq.cli import hydra_train

    found = []

    def job(cfg: Any) -> None:
        hydra_train.main(cfg)
        found.append(OmegaConf.to_yaml(cfg))

    from fairseq.cli.common import run_command

    os.chdir(folder)
    words = ["--config-dir", str(folder), "--config-name", "run"]
    with contextlib.redirect_stdout(io.StringIO()):
        run_command("fairseq-hydra-train", lambda: hydra_train.compose_and_run(words, job))
    return "\n".join(found)


def make_recipe(folder: Path) -> None:
    source = ROOT / "fairseq" / "glue" / "recipes"
    text = (source / "roberta.yaml").read_text(encoding="utf-8")
    (folder / "own.yaml").write_text(text, encoding="utf-8")


def read_recipe(folder: Path) -> str:
    from fairseq.finetune.glue_files import TASKS
    from fairseq.glue import recipe

    names = [name for name, task in TASKS.items() if task.trains]
    loaded = recipe.load(str(folder / "own.yaml"), names)
    found = []
    for name in names:
        merged = loaded.for_task(name)
        found.append([merged.options, [(point, merged.length(3668, point)) for point in merged.points()]])
    return repr((loaded.first_seeds(3), found))


# -- models of other programs -----------------------------------------------------------------------------------------


def convert(folder: Path, source: str, special: str = "cls=1,pad=0,sep=2,unk=3,mask=4") -> str:
    from fairseq.cli import convert

    shutil.rmtree(folder / "out", ignore_errors=True)
    words = ["--special", special] if special else []
    printed(convert.cli_main, "--from", source, "--to", "fairseq", *words, folder / "in", folder / "out")
    state = torch.load(folder / "out" / "model.pt", weights_only=False)
    return digest([state, (folder / "out" / "dict.txt").read_bytes()])


def make_flax(folder: Path) -> None:
    (folder / "in").mkdir()
    for name in ("config.json", "flax_model.msgpack"):
        shutil.copyfile(DATA / "bigs" / name, folder / "in" / name)


def make_bert_convolutions(folder: Path) -> None:
    from tests.unit.test_bert_convolutions import folder_of

    folder_of("convbert", folder / "in")


def make_for_transformers(folder: Path, name: str) -> None:
    from fairseq.interop.convert import convert_checkpoint

    folder_with(folder / "ours", {"_name": "roberta"})
    convert_checkpoint("fairseq", name, folder / "ours", folder / "in")


def make_ultrafastbert(folder: Path) -> None:
    shutil.copytree(DATA / "ultrafastbert" / "1x11", folder / "in")


def make_with_tokenizer(folder: Path) -> None:
    """A folder whose tokenizer says which ids are special."""
    torch_folder(folder / "in")
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *(f"w{number}" for number in range(91))]
    write_text(folder / "in" / "vocab.txt", words)
    tokens = {f"{name}_token": f"[{name.upper()}]" for name in SPECIAL}
    (folder / "in" / "special_tokens_map.json").write_text(json.dumps({**tokens, "mask_token": {"content": "[MASK]"}}))
    added = [{"id": number, "content": word, "special": True} for number, word in enumerate(words[:5])]
    model = {"type": "WordPiece", "vocab": {word: number for number, word in enumerate(words)}}
    (folder / "in" / "tokenizer.json").write_text(json.dumps({"added_tokens": added, "model": model}))


def make_folder(folder: Path) -> None:
    """A folder of ours that came from another program, and knows the way back."""
    from fairseq.interop.convert import convert_checkpoint

    make_flax(folder)
    (folder / "in").rename(folder / "flax")
    convert_checkpoint("bigs-flax", "fairseq", folder / "flax", folder / "in", SPECIAL)
    shutil.rmtree(folder / "flax")


def convert_back(folder: Path) -> str:
    from fairseq.cli import convert

    shutil.rmtree(folder / "out", ignore_errors=True)
    printed(convert.cli_main, "--from", "fairseq", "--to", "bigs-flax", folder / "in", folder / "out")
    return files_digest(folder / "out")


_JSON = any_of(of_json, of_json, of_lines, of_bytes)
_TEXT = any_of(of_lines, of_lines, of_bytes)
_TASKS: dict[str, tuple[str, str, dict[str, Damage]]] = {
    "glue": ("glue/RTE", "RTE", {"RTE/RTE/train.tsv": _TEXT}),
    "plain": ("plain", "plain", {"plain/train.raw.input0": _TEXT, "plain/train.label": _TEXT}),
    "squad": ("squad", "squad", {"squad/train.json": _JSON}),
    "commonsense_qa": ("commonsense_qa", "commonsense_qa", {"commonsense_qa/train_rand_split.jsonl": _JSON}),
    "race": ("race", "race", {"race/train/middle/1.txt": _JSON}),
    "swag": ("swag", "swag", {"swag/train.csv": _TEXT}),
    "conll": ("conll", "conll", {"conll/train.txt": _TEXT}),
}


def _preprocessing(bpe: Callable[[Path], list[object]]) -> Callable[[Path], str]:
    return lambda folder: preprocess(folder, bpe(folder))


def _task(task: str, data: str) -> Callable[[Path], str]:
    return lambda folder: preprocess_task(folder, task, data)


KINDS: dict[str, Kind] = {
    "checkpoint": Kind(make_checkpoint, {"model.pt": of_bytes}, read_checkpoint, checked=True),
    "checkpoint-values": Kind(make_checkpoint, {"model.pt": of_state}, read_checkpoint),
    "checkpoint-legacy": Kind(make_legacy_checkpoint, {"model.pt": of_bytes}, read_checkpoint),
    "dict.txt": Kind(make_checkpoint, {"dict.txt": _TEXT}, fill_mask),
    "data": Kind(make_checkpoint, {"data-bin/valid.idx": of_bytes, "data-bin/valid.bin": of_bytes}, validate),
    "described data": Kind(make_described, dict.fromkeys(DESCRIBED, of_bytes), validated, checked=True),
    "yaml": Kind(make_yaml, {"run.yaml": any_of(of_yaml, of_yaml, of_lines, of_bytes)}, hydra_train),
    "recipe": Kind(make_recipe, {"own.yaml": any_of(of_yaml, of_lines, of_bytes)}, read_recipe),
    "text": Kind(make_texts, {"train.txt": _TEXT}, _preprocessing(gpt2)),
    "gpt2": Kind(make_texts, {"encoder.json": _JSON, "vocab.bpe": _TEXT}, _preprocessing(gpt2)),
    "hf_byte_bpe": Kind(
        make_texts,
        {"encoder.json": _JSON, "vocab.bpe": _TEXT},
        _preprocessing(
            lambda f: ["--bpe", "hf_byte_bpe", "--bpe-vocab", f / "encoder.json", "--bpe-merges", f / "vocab.bpe"]
        ),
    ),
    "tokenizer.json": Kind(
        make_tokenizer_json,
        {"tokenizer.json": _JSON},
        _preprocessing(lambda f: ["--bpe", "hf_tokenizer", "--hf-tokenizer-file", f / "tokenizer.json"]),
    ),
    "vocab.txt": Kind(
        make_word_pieces,
        {"vocab.txt": _TEXT},
        _preprocessing(lambda f: ["--bpe", "bert", "--bpe-vocab-file", f / "vocab.txt"]),
    ),
    "sentencepiece": Kind(
        make_sentencepiece,
        {"m.model": of_bytes},
        _preprocessing(lambda f: ["--bpe", "sentencepiece", "--sentencepiece-model", f / "m.model"]),
    ),
    **{f"task {name}": Kind(make_tasks, files, _task(task, data)) for name, (task, data, files) in _TASKS.items()},
    "bigs-torch": Kind(
        lambda folder: (torch_folder(folder / "in"), None)[1],
        {"in/config.json": _JSON, "in/model.safetensors": of_bytes},
        lambda folder: convert(folder, "bigs-torch"),
    ),
    "bigs-flax": Kind(
        make_flax,
        {"in/config.json": _JSON, "in/flax_model.msgpack": of_bytes},
        lambda folder: convert(folder, "bigs-flax"),
    ),
    "bigs-tokenizer": Kind(
        make_with_tokenizer,
        {"in/tokenizer.json": _JSON, "in/vocab.txt": _TEXT, "in/special_tokens_map.json": _JSON},
        lambda folder: convert(folder, "bigs-torch", special=""),
    ),
    "bert-convolutions": Kind(
        make_bert_convolutions,
        {"in/config.json": _JSON, "in/pytorch_model.bin": of_bytes},
        lambda folder: convert(folder, "bert-convolutions"),
    ),
    "folder": Kind(make_folder, {"in/conversion.json": _JSON, "in/dict.txt": _TEXT}, convert_back),
    **{
        name: Kind(
            functools.partial(make_for_transformers, name=name),
            {"in/config.json": _JSON, "in/model.safetensors": of_bytes, "in/tokenizer.json": _JSON},
            functools.partial(convert, source=name, special=""),
        )
        for name in ("hf-auto", "hf-roberta")
    },
    "ultrafastbert": Kind(
        make_ultrafastbert,
        {"in/config.json": _JSON, "in/model.safetensors": of_bytes},
        lambda folder: convert(folder, "ultrafastbert"),
    ),
}
