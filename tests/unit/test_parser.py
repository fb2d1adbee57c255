"""The command lines: two-stage flags, old spellings, refusals, and how mistakes are reported."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fairseq.dataclass import FairseqDataclass, option
from fairseq.dataclass.build import convert_namespace_to_omegaconf
from fairseq.dataclass.flags import FairseqParser, gen_parser_from_dataclass
from fairseq.dataclass.parser import (
    get_args,
    get_generation_parser,
    get_preprocessing_parser,
    get_training_parser,
    get_validation_parser,
    parse_args_and_arch,
)
from fairseq.errors import ConfigError, OutOfScopeError
from fairseq.registry import ARCHITECTURE_MODELS, ARCHITECTURES, LR_SCHEDULERS, MODELS, OPTIMIZERS
from tests.common import ROOT

BASE = "data-bin --task masked_lm --criterion masked_lm --arch roberta --optimizer adam --lr 0.25"


@pytest.fixture(autouse=True)
def _registries_stay_clean() -> Iterator[None]:
    """Other tests sweep over what is registered."""
    tables = [
        table for registry in (MODELS, ARCHITECTURES, OPTIMIZERS) for table in (registry._entries, registry._configs)
    ]
    saved = [dict(table) for table in (*tables, ARCHITECTURE_MODELS)]
    yield
    for table, before in zip((*tables, ARCHITECTURE_MODELS), saved, strict=True):
        for name in set(table) - set(before):
            if "_test_" in name:
                del table[name]


def parse(text: str, **kwargs: Any) -> Any:
    return parse_args_and_arch(get_training_parser(), shlex.split(text), **kwargs)


def config(text: str) -> Any:
    return convert_namespace_to_omegaconf(parse(f"{BASE} {text}"))


def mistake(text: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(text)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("fairseq-train: error: ")
    return lines[0]


def test_flags_reach_their_sections() -> None:
    cfg = config(
        "--lr 0.005 --update-freq 2,4 --adam-betas '(0.9,0.98)' --adam-eps 1e-6 --lr-scheduler polynomial_decay "
        "--total-num-update 40 --warmup-updates 4 --max-update 6 --batch-size 4 --seed 7 --encoder-layers 2"
    )
    assert cfg.optimization.lr == [0.005] and cfg.optimization.update_freq == [2, 4]
    assert cfg.optimizer.adam_betas == "(0.9,0.98)" and cfg.optimizer.adam_eps == 1e-6
    assert cfg.lr_scheduler.total_num_update == 40.0 and cfg.task.seed == 7
    assert cfg.dataset.batch_size_valid == 4 and cfg.model.encoder_layers == 2


def test_total_num_update_follows_max_update() -> None:
    cfg = config("--lr-scheduler polynomial_decay --max-update 12")
    assert cfg.lr_scheduler.total_num_update == 12.0


def test_task_and_model_mask_prob_are_two_options() -> None:
    cfg = config("")
    assert cfg.task.mask_prob == 0.15 and "mask_prob" not in cfg.model
    cfg = config("--mask-prob 0.2 --model-mask-prob 0.3")
    assert cfg.task.mask_prob == 0.2 and cfg.model.mask_prob == 0.3


def test_model_booleans() -> None:
    assert set(config("--max-positions 9").model) == {"_name", "max_positions"}
    assert config("--layernorm-embedding").model.layernorm_embedding is True
    assert config("--l2norm-embedding").model.l2norm_embedding is False
    assert config("--no-encoder-learned-pos").model.encoder_learned_pos is False
    assert config("--no-scale-embedding").model.no_scale_embedding is True
    assert config("--scale-embedding").model.no_scale_embedding is False
    assert config("--encoder-alibi").model.encoder_alibi is True


def test_positions_follow_the_sample_length_as_on_old_command_lines() -> None:
    assert config("--tokens-per-sample 64").model.max_positions == 64
    assert config("--tokens-per-sample 64 --max-positions 80").model.max_positions == 80


@pytest.mark.parametrize(
    ("flags", "section", "key", "value"),
    [
        ("--max-sentences 3", "dataset", "batch_size", 3),
        ("--max-sentences-valid 3", "dataset", "batch_size_valid", 3),
        ("--combine-val", "dataset", "combine_valid_subsets", True),
        ("--nval 5", "dataset", "max_valid_steps", 5),
        ("--save-async", "checkpoint", "write_checkpoints_asynchronously", True),
        ("--local_rank 0", "distributed_training", "device_id", 0),
        ("--ddp-backend=legacy_ddp", "distributed_training", "ddp_backend", "legacy_ddp"),
        ("--no-epoch-checkpoints", "checkpoint", "no_epoch_checkpoints", True),
        ("--memory-efficient-bf16", "common", "bf16", True),
        ("--patience 3", "checkpoint", "patience", 3),
        ("--store-ema --ema-decay 0.5", "ema", "ema_decay", 0.5),
    ],
)
def test_old_spellings(flags: str, section: str, key: str, value: Any) -> None:
    assert config(flags)[section][key] == value


def test_bf16_does_not_force_tpu() -> None:
    cfg = config("--bf16")
    assert cfg.common.bf16 and not cfg.common.tpu


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--droput 0.1", "unknown option --droput; did you mean --dropout?"),
        ("--max-updates 3", "did you mean --max-update?"),
        ("--max-upd 3", "unknown option --max-upd"),
        ("stray", "unexpected argument 'stray'"),
        ("--seed abc", "must be an integer, but is 'abc'"),
        ("--log-format jsn", "did you mean 'json'"),
        ("--sample-break-mode complet", "did you mean 'complete'"),
        ("--optimizer adm", "did you mean 'adam'"),
        ("--bpe sentencepiece", "--sentencepiece-model must be given"),
        ("--tpu", "out of scope"),
        ("--use-bmuf", "out of scope"),
        ("--quant-noise-pq 0.1", "out of scope"),
        ("--mha-heads-to-keep 3", "out of scope"),
        ("--pipeline-model-parallel", "out of scope"),
        ("--slowmo-momentum 0.1", "out of scope"),
        ("--ddp-backend slowmo", "out of scope"),
    ],
)
def test_mistakes(flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in mistake(f"{BASE} {flags}", capsys)


def test_out_of_scope_flags_pass_at_their_default() -> None:
    config("--quant-noise-pq 0 --mha-heads-to-keep -1 --slowmo-base-algorithm localsgd --scoring bleu")


def test_masked_lm_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    cfg = convert_namespace_to_omegaconf(parse("data-bin --arch roberta --optimizer adam --lr 0.1"))
    assert cfg.task._name == cfg.criterion._name == "masked_lm"
    assert parse("data-bin --arch roberta --task sentence_prediction --lr 1").criterion == "sentence_prediction"
    assert parse("data-bin --arch roberta --task multiple_choice --lr 1").criterion is None  # asked for later
    assert "arguments are required: data" in mistake("", capsys)
    assert "out of scope" in mistake("data-bin --criterion cross_entropy --arch roberta", capsys)
    assert "out of scope" in mistake("data-bin --task translation --arch roberta", capsys)
    assert "out of scope" in mistake(f"{BASE} --arch transformer", capsys)
    assert "did you mean 'roberta_base'" in mistake(f"{BASE} --arch roberta_bsae", capsys)


def test_the_learning_rate_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert "give --lr" in mistake(BASE.removesuffix("--lr 0.25"), capsys)
    assert config("--lr 0.1").optimizer.lr == [0.1]
    assert get_args("d").lr == [0.25]  # programs set it themselves


def test_missing_data_directory(capsys: pytest.CaptureFixture[str]) -> None:
    assert "data" in mistake(BASE.removeprefix("data-bin "), capsys)


def test_parse_known_and_modify_parser() -> None:
    args, rest = parse(f"{BASE} --foreign 1", parse_known=True)
    assert rest == ["--foreign", "1"] and args.arch == "roberta"
    args = parse(BASE, modify_parser=lambda parser: parser.set_defaults(max_update=5))
    assert args.max_update == 5


def test_get_args_for_programs() -> None:
    args = get_args("d", task="masked_lm", arch="roberta", criterion="masked_lm", max_tokens=5)
    assert args.data == "d" and args.max_tokens == 5 and args.tokens_per_sample == 1024


def test_validation_keeps_only_what_was_typed() -> None:
    words = ["d", "--path", "c.pt", "--task", "masked_lm", "--max-tokens", "5"]
    args = parse_args_and_arch(get_validation_parser(), words, suppress_defaults=True)
    assert vars(args) == {"data": "d", "path": "c.pt", "task": "masked_lm", "max_tokens": 5}
    full = parse_args_and_arch(get_validation_parser(), ["d", "--path", "c.pt"])
    assert full.data == "d" and full.model_overrides == "{}" and full.distributed_world_size == 1
    assert parse_args_and_arch(get_validation_parser(), ["d", "--remove-bpe"]).post_process == "subword_nmt"


def test_preprocessing_options() -> None:
    words = ["--only-source", "--trainpref", "t", "--bpe", "gpt2", "--gpt2-vocab-bpe", "v", "--workers", "3"]
    args = parse_args_and_arch(get_preprocessing_parser(), words)
    assert parse_args_and_arch(get_preprocessing_parser(), [*words, "--seed", "3", "--optimizer", "adam"]).seed == 3
    assert args.only_source and args.gpt2_vocab_bpe == "v" and args.padding_factor == 8 and args.nwordssrc == -1


def test_generation_is_refused() -> None:
    with pytest.raises(OutOfScopeError):
        get_generation_parser()


@dataclass(kw_only=True)
class First(FairseqDataclass):
    width: int = option(1, "width")
    shared: int = option("${common.seed}", "shared")


@dataclass(kw_only=True)
class Second(FairseqDataclass):
    width: int = option(2, "another width")


@dataclass(kw_only=True)
class Third(FairseqDataclass):
    width: float = option(1, "width as a fraction")


def test_two_meanings_of_a_flag_are_an_error() -> None:
    parser = FairseqParser()
    gen_parser_from_dataclass(parser.add_argument_group("one"), First)
    gen_parser_from_dataclass(parser.add_argument_group("two"), First)  # the same meaning
    for other in (Second, Third):
        for target in (parser, parser.add_argument_group("three")):
            with pytest.raises(ConfigError, match=r"--width .*First.*argparse_flag"):
                gen_parser_from_dataclass(target, other)
    gen_parser_from_dataclass(parser, Second, delete_default=True)  # a model's and a task's max_positions
    gen_parser_from_dataclass(parser, Second, with_prefix="second")
    assert parser.parse_args(["--second-width", "4"]).second_width == 4


def test_plugin_model_without_dataclass() -> None:
    class OldModel:
        @staticmethod
        def add_args(parser: Any) -> None:
            parser.add_argument("--old-width", type=int)
            parser.add_argument("--old-depth", type=int, default=3)

    MODELS.register("parser_test_model")(OldModel)
    ARCHITECTURES.register("parser_test_arch")(lambda args: None)
    ARCHITECTURE_MODELS["parser_test_arch"] = "parser_test_model"
    args = parse(f"{BASE} --arch parser_test_arch --old-width 5")
    assert args.old_width == 5 and args.old_depth == 3
    model = convert_namespace_to_omegaconf(args).model
    assert isinstance(model, argparse.Namespace) and model._name == "parser_test_arch" and model.max_update == 0


def test_user_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "parser_test_plugin"
    (plugin / "tasks").mkdir(parents=True)
    (plugin / "__init__.py").write_text("")
    (plugin / "tasks" / "__init__.py").write_text("")
    (plugin / "tasks" / "extra.py").write_text(
        "from fairseq.registry import OPTIMIZERS\n"
        "from fairseq.dataclass import FairseqDataclass, option\n"
        "from dataclasses import dataclass\n"
        "@dataclass(kw_only=True)\n"
        "class C(FairseqDataclass):\n    zest: float = option(0.5, 'zest')\n"
        "OPTIMIZERS.register('parser_test_zest', dataclass=C)(object)\n"
    )
    cfg = config(f"--user-dir {plugin} --optimizer parser_test_zest --zest 2")
    assert cfg.optimizer == {"_name": "parser_test_zest", "zest": 2.0}
    other = tmp_path / "elsewhere" / "parser_test_plugin"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("")
    with pytest.raises(ImportError, match="already imported"):
        config(f"--user-dir {other}")
    assert "does not exist" in mistake(f"{BASE} --user-dir {tmp_path}/nothing", capsys)


def test_help_is_complete_and_imports_no_torch() -> None:
    code = (
        "import sys\nfrom fairseq import options\n"
        "try: options.parse_args_and_arch(options.get_training_parser(), ['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'hydra', 'omegaconf'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    for flag in ("--max-update", "--mask-prob", "--encoder-layers", "--adam-betas", "--model-mask-prob"):
        assert flag in result.stdout
    assert "--quant-noise-pq" not in result.stdout


@pytest.mark.parametrize("scheduler", LR_SCHEDULERS.names())
def test_every_combination_of_built_ins_parses(scheduler: str) -> None:
    more = "--max-lr 0.5" if scheduler == "triangular" else ""
    for optimizer in OPTIMIZERS.names():
        cfg = config(f"--optimizer {optimizer} --lr-scheduler {scheduler} {more} --arch xlm --lr 0.1 --max-update 3")
        assert cfg.lr_scheduler._name == scheduler and cfg.optimizer.lr == [0.1]
        assert cfg.lr_scheduler.get("lr", [0.1]) == [0.1]
        assert cfg.model == {"_name": "xlm", "max_positions": 1024}
