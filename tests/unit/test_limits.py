"""What may not take memory: sizes of models, numbers of processes, values that refer to values, odd YAML."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fairseq.cli import fill_mask, hydra_train, train
from fairseq.dataclass.build import build_config
from fairseq.dataclass.hydra_yaml import read_primary
from fairseq.errors import ConfigError
from fairseq.glue import recipe
from fairseq.limits import excess, expecting, memory_there, read_yaml, reference_excess, too_large
from fairseq.models.roberta import factory
from tests.common import ROOT, tiny_data_bin
from tests.runs import DATA, TINY_FLAGS


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Hydra replaces the handlers of the log."""
    handlers, level, place = logging.root.handlers[:], logging.root.level, Path.cwd()
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    os.chdir(place)


# -- nested values ----------------------------------------------------------------------------------------------------


def test_ordinary_values() -> None:
    assert excess({"a": [1, {"b": (2, 3)}], "c": "x" * 10**6}) is None
    assert excess([[[0]] * 1000] * 3) is None
    shared = list(range(1000))
    assert excess([shared] * 50) is None


def test_values_that_are_larger_than_they_look() -> None:
    laughs: Any = ["ha"]
    for _ in range(40):
        laughs = [laughs, laughs]
    assert "3e+12" in str(excess({"a": laughs}))
    assert "3e+12" in str(excess({1: laughs}))
    deep: Any = {}
    for _ in range(5000):
        deep = {"a": deep}
    assert "more than 100 deep" in str(excess(deep))
    circle: list[Any] = []
    circle.append(circle)
    assert "contains itself" in str(excess(circle))


def test_references() -> None:
    assert reference_excess({"a": {"b": 1, "c": "${a.b} ${.b} ${oc.env:HOME}"}, "d": "${oc.select:a.b,3}"}) is None
    assert reference_excess({"a": "${b}", "b": "${a}", "c": "${c}"}) is None  # circles are omegaconf's to refuse
    chain = {f"k{number}": f"${{k{number + 1}}}${{k{number + 1}}}" for number in range(40)} | {"k40": "ha"}
    assert "written out they would be 3e+13 characters" in str(reference_excess(chain))
    lists = {f"k{number}": [f"${{.[1]}}${{k{number + 1}[1]}}", f"${{k{number + 1}}}"] for number in range(60)}
    assert reference_excess({**lists, "k60": ["ha", "ha"]}) is not None
    long = {f"k{number}": f"${{k{number + 1}}}" for number in range(300)} | {"k300": 1}
    assert "followed by more than" in str(reference_excess(long))
    data = {"_name": "masked_lm", "data": "${common.log_file}" * 2000}
    common = {"log_file": "${checkpoint.save_dir}" * 2000}
    with pytest.raises(ConfigError, match="the settings hold references to references: .* characters"):
        build_config({"task": data, "common": common, "checkpoint": {"save_dir": "here"}})


# -- memory -----------------------------------------------------------------------------------------------------------


def test_what_is_too_large() -> None:
    assert too_large(1000) is None
    there = memory_there()
    if there is not None:
        assert 1 << 26 < there < 1 << 50
        assert "TB" not in str(too_large(10**15)) and "1e+06 GB" in str(too_large(10**15))
    with expecting(1000, "the weights in x.pt"):
        assert too_large(10**8) is None
        assert "about 10 GB of memory, but the weights in x.pt have 0.001 MB" in str(too_large(10**10))


def test_counting_a_model_draws_nothing_and_misses_little() -> None:
    from omegaconf import OmegaConf

    sizes = {"encoder_layers": 3, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 64, "encoder_attention_heads": 4}
    config = factory.configuration(OmegaConf.create({"_name": "roberta", "max_positions": 20, **sizes}))
    before = torch.get_rng_state()
    counted: list[int] = []
    original = factory.too_large
    try:
        factory.too_large = lambda need: counted.append(need)  # type: ignore[assignment]
        factory.check_memory(config, 50, 1)
    finally:
        factory.too_large = original
    assert torch.equal(before, torch.get_rng_state()) and config.encoder_layers == 3
    encoder = factory.build_encoder(config, factory.build_token_embedding(config, 50, 1), 1)
    assert counted[0] - 3 * (1 << 15) == 4 * sum(parameter.numel() for parameter in encoder.parameters())


def refused(capsys: pytest.CaptureFixture[str], command: Any, *words: object) -> str:
    with pytest.raises(SystemExit) as ended:
        command.cli_main(argv=[str(word) for word in words])
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--encoder-layers", 10**9], "a model of this size needs about .* GB of memory"),
        (["--encoder-embed-dim", 10**7], "a model of this size needs about .* GB of memory"),
        (["--encoder-ffn-embed-dim", 10**13], "a model of this size needs about .* GB of memory"),
        (["--max-positions", 10**12], "a model of this size needs about .* GB of memory"),
        (["--encoder-layers", 10**30], "--encoder-layers: the value must be an integer of at most 64 bits"),
        (["--channel-mixer", "fff", "--fff-depth", 24, "--fff-trees", 10**6], "a model of this size needs about"),
        (["--num-workers", 10**8], "num_workers is 100000000: so many processes need about .* GB"),
        (["--num-workers", 2, "--data-buffer-size", 10**7], "data workers need about 50000048 open files, but"),
        (["--save-dir", "a\0b"], "--save-dir: the value must be a string without NUL characters"),
    ],
)
def test_sizes_that_a_user_gives(
    flags: list[Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.search(words, refused(capsys, train, DATA, *TINY_FLAGS, "--max-update", 1, *flags))


@pytest.mark.parametrize(
    ("key", "value"), [("encoder_layers", 10**9), ("encoder_embed_dim", 4 * 10**4), ("max_positions", 10**8)]
)
def test_sizes_in_a_checkpoint(key: str, value: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Compared with the weights that are stored: some of these would fit into memory."""
    state = torch.load(ROOT / "tests/data/roberta/baseline/checkpoint.pt", weights_only=True)
    state["cfg"]["model"][key] = value
    torch.save(state, tmp_path / "checkpoint_last.pt")
    (tmp_path / "dict.txt").write_bytes((DATA / "dict.txt").read_bytes())
    said = refused(capsys, fill_mask, "--path", tmp_path, "--bpe", "none", "--cpu", "102 <mask>")
    assert "a model of this size needs about" in said and "checkpoint_last.pt have" in said and f"{key}={value}" in said


# -- YAML -------------------------------------------------------------------------------------------------------------

LAUGHS = "a0: &a0 [ha, ha]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("5\n", "must hold groups of settings .*, but holds int"),
        ("just words\n", "must hold groups of settings .*, but holds str"),
        ("- 1\n- 2\n", "must hold groups of settings .*, but holds list"),
        ("defaults: 5\n", "defaults in .* must be a list of names and of group: name, but is 5"),
        ("defaults: {model: x}\n", "defaults in .* must be a list"),
        ("defaults: [[a, b]]\n", r"defaults in .* may hold names and group: name, but has \['a', 'b'\]"),
        ("defaults: [5]\n", "may hold names and group: name, but has 5"),
        ("defaults: [{}]\n", "may hold names and group: name, but has {}"),
        ("defaults: [{'': x}]\n", "may hold names and group: name"),
        ("defaults: [{model: 5}]\n", "may hold names and group: name"),
        ("common: {seed: 1}\ncommon: {seed: 2}\n", "is not valid YAML: .* duplicate key common"),
        ("hydra: 5\n", "hydra in .* must be a group of settings"),
        ("common: " + "[" * 3000 + "]" * 3000 + "\n", "nested too deep|nested more than 100 deep"),
        ("common: 2001-99-99\n", "cannot be read as YAML"),
        (LAUGHS, r"holds values that repeat each other"),
        ("common: {seed: '${a}${a}'}\n" + "".join(f"k{n}: '${{k{n + 1}}}${{k{n + 1}}}'\n" for n in range(40)) + "k40: ha\n",
         "holds references to references"),
    ],
)  # fmt: skip
def test_odd_yaml_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=sentence) as error:
        read_primary(tmp_path / "odd.yaml")
    assert "odd.yaml" in str(error.value)


def test_usual_yaml_is_read(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "defaults: [base, _self_, {optional db: x}, {override hydra/job_logging: [a, null]}]\n"
        "x: &x {seed: 3}\ncommon: *x\ntask: {_name: masked_lm, data: '${oc.env:HOME}'}\n",
        encoding="utf-8",
    )
    assert read_yaml(tmp_path / "run.yaml")["common"] == {"seed": 3}
    assert read_primary(tmp_path / "run.yaml").content["common"] == {"seed": 3}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hydra": {"job_logging": {"version": 1, "root": {"handlers": ["nowhere"]}}}}, "hydra cannot use .*run.yaml"),
        ({"hydra": {"job_logging": {"version": 1, "handlers": {"a": {"class": "no.Such"}}}}}, "hydra cannot use"),
        ({"hydra": {"run": 5}}, "hydra|run"),
        ({"checkpoint": {"save_dir": "a\0b"}}, "checkpoint.save_dir must be a string without NUL characters"),
        ({"bmuf": 0.5}, "bmuf must be a group of settings, but is 0.5"),
        ({"optimization": {"lr": [0.1], "update_freq": [10**30]}}, "update_freq must be an integer of at most 64 bits"),
    ],
)
def test_odd_settings_end_the_command_with_one_sentence(
    changes: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = yaml.safe_load((ROOT / "tests/data/config/baseline.yaml").read_text(encoding="utf-8"))
    settings["task"]["data"] = str(tiny_data_bin(tmp_path / "data-bin"))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**settings, **changes}), encoding="utf-8")
    said = refused(capsys, hydra_train, "--config-dir", tmp_path, "--config-name", "run")
    assert re.search(sentence, said), said


def test_a_recipe_that_repeats_itself(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(LAUGHS.replace("a39:", "all:"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"own\.yaml holds values that repeat each other"):
        recipe.load(str(tmp_path / "own.yaml"), ["RTE"])
