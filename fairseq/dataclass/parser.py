"""The parsers of the commands, generated from the configuration dataclasses in two stages.

First the names of the components (``--task``, ``--arch``, ``--criterion``, ...) are read, then the flags of those
components are added and everything is parsed. Nothing here imports torch or a component: the configuration classes
are found through the registries. Only a plugin component without a dataclass is imported, for its ``add_args``.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

from fairseq.dataclass import legacy
from fairseq.dataclass.base import GROUPS, MISSING, field_specs, model_config_class
from fairseq.dataclass.configs import DATASET_IMPLS, SECTIONS
from fairseq.dataclass.flags import FairseqParser, gen_parser_from_dataclass
from fairseq.dataclass.slots import chosen_variants, slots_of
from fairseq.dataclass.user_module import import_user_module
from fairseq.errors import ConfigError, FairseqError, OutOfScopeError
from fairseq.refusals import HERE
from fairseq.registry import ARCHITECTURE_MODELS, ARCHITECTURES, CRITERIONS, MODELS, TASKS, Registry

# Old defaults that are out of scope: accepted as long as nothing is built from them.
OLD_CRITERION = "cross_entropy"
OLD_TASK = "translation"
DEFAULT_TASK = "masked_lm"


def get_parser(desc: str, default_task: str | None = OLD_TASK) -> FairseqParser:
    """Common flags and the component selectors. ``desc`` names the command: "Trainer", "Preprocessing", ..."""
    program, usage, description, epilog = _COMMANDS.get(desc, (None, None, desc, _EPILOG))
    formatter = argparse.RawDescriptionHelpFormatter
    parser = FairseqParser(prog=program, usage=usage, description=description, epilog=epilog, formatter_class=formatter)
    gen_parser_from_dataclass(parser, SECTIONS["common"])
    group = parser.add_argument_group("components")
    for name, default in _SELECTORS.items():
        known = ", ".join(GROUPS[name].names())
        shown = f"{name}: {known}" if known else argparse.SUPPRESS
        group.add_argument(f"--{name.replace('_', '-')}", default=default, metavar="NAME", help=shown)
    group.add_argument("--task", default=default_task, metavar="NAME", help=f"task: {', '.join(TASKS.names())}")
    return parser


_SELECTORS = {
    "criterion": OLD_CRITERION,
    "tokenizer": None,
    "bpe": None,
    "optimizer": None,
    "lr_scheduler": "fixed",
    "scoring": "bleu",
}
_EPILOG = "Flags of a component appear when it is chosen, for example: --task masked_lm --arch roberta_base --help"
_TRAIN = """\
Train a masked language model, or fine-tune one.

example:
  fairseq-train data-bin --arch roberta_base --optimizer adam --lr 0.0005 --lr-scheduler polynomial_decay \\
      --warmup-updates 1000 --max-update 20000 --tokens-per-sample 512 --batch-size 16 --save-dir checkpoints

What stands in brackets is used when a flag is not given."""
_PREPROCESS = """\
Build a dictionary and binarized data from text.

example:
  fairseq-preprocess --only-source --trainpref train.txt --validpref valid.txt --destdir data-bin --workers 4 \\
      --bpe gpt2 --gpt2-encoder-json encoder.json --gpt2-vocab-bpe vocab.bpe --srcdict dict.txt"""
_VALIDATE = """\
Evaluate a checkpoint on data that it was not trained on.

example:
  fairseq-validate data-bin --path checkpoints/checkpoint_best.pt --valid-subset test --batch-size 16"""
# What get_parser's argument stands for: program, usage, description, epilog
_COMMANDS: dict[str, tuple[str | None, str | None, str, str]] = {
    "Trainer": ("fairseq-train", "%(prog)s DATA [options]", _TRAIN, _EPILOG),
    "Preprocessing": (
        "fairseq-preprocess",
        "%(prog)s [options]",
        _PREPROCESS,
        "The flags of an encoder appear when it is chosen, for example: --bpe gpt2 --help",
    ),
    "Validation": ("fairseq-validate", "%(prog)s DATA --path CHECKPOINT [options]", _VALIDATE, _EPILOG),
}
_PREPROCESSING = (
    "help",
    "version",
    "no_progress_bar",
    "user_dir",
    "bpe",
)  # shown; the other general flags are accepted


def get_training_parser(default_task: str | None = DEFAULT_TASK) -> FairseqParser:
    """The parser of fairseq-train. Without ``--criterion`` it is the one that is called as the task."""
    parser = get_parser("Trainer", default_task)
    parser.stage = "train"
    parser.set_defaults(criterion=None)
    add_dataset_args(parser, train=True)
    add_distributed_training_args(parser)
    add_model_args(parser)
    add_optimization_args(parser)
    add_checkpoint_args(parser)
    add_ema_args(parser)
    return parser


def get_validation_parser(default_task: str | None = None) -> FairseqParser:
    """The parser of fairseq-validate."""
    parser = get_parser("Validation", default_task)
    parser.stage = "validate"
    parser.set_defaults(criterion=None)  # the checkpoint knows its own
    add_dataset_args(parser, train=True)
    add_distributed_training_args(parser)
    _add_section(parser, "evaluation", "common_eval")
    return parser


def get_preprocessing_parser(default_task: str | None = OLD_TASK) -> FairseqParser:
    """The parser of fairseq-preprocess."""
    parser = get_parser("Preprocessing", default_task)
    parser.stage = "preprocess"
    for action in parser._actions:
        if action.dest not in _PREPROCESSING:
            action.help = argparse.SUPPRESS
    add_preprocess_args(parser)
    return parser


def get_generation_parser(*args: Any, **kwargs: Any) -> FairseqParser:
    """Refused: generation, interactive translation and language-model evaluation are out of scope."""
    raise OutOfScopeError(f"generation and language-model evaluation are out of scope: {HERE}")


get_interactive_generation_parser = get_speech_generation_parser = get_eval_lm_parser = get_generation_parser


def add_dataset_args(parser: Any, train: bool = False, gen: bool = False) -> Any:
    return _add_section(parser, "data, batches and validation", "dataset")


def _add_section(parser: Any, title: str, section: str) -> Any:
    group = parser.add_argument_group(title)
    gen_parser_from_dataclass(group, SECTIONS[section])
    return group


def add_distributed_training_args(parser: Any, default_world_size: int | None = None) -> Any:
    group = _add_section(parser, "distributed training", "distributed_training")
    if default_world_size is not None:
        parser.set_defaults(distributed_world_size=default_world_size)
    return group


add_optimization_args = functools.partial(_add_section, title="optimization", section="optimization")
add_checkpoint_args = functools.partial(_add_section, title="checkpoints", section="checkpoint")
add_ema_args = functools.partial(_add_section, title="moving average of the parameters", section="ema")


def add_model_args(parser: Any) -> Any:
    group = parser.add_argument_group("model")
    group.add_argument("--arch", "-a", metavar="NAME", help=f"model architecture: {', '.join(ARCHITECTURES.names())}")
    return group


def add_preprocess_args(parser: Any) -> Any:
    """Input, dictionary and output of fairseq-preprocess."""
    group = parser.add_argument_group("preprocessing")
    add = group.add_argument
    add("-s", "--source-lang", default=None, metavar="SRC", help="suffix of the source files (masked LM: leave unset)")
    add(
        "-t",
        "--target-lang",
        default=None,
        metavar="TARGET",
        help="suffix of the target files (masked LM: leave unset)",
    )
    add("--trainpref", metavar="FP", help="training file (without language suffix); the dictionary is built from it")
    add("--validpref", metavar="FP", help="comma-separated validation files")
    add("--testpref", metavar="FP", help="comma-separated test files")
    add("--align-suffix", metavar="FP", help="out of scope: alignment files")
    add("--alignfile", metavar="ALIGN", help="out of scope: alignments")
    add("--destdir", metavar="DIR", default="data-bin", help="output directory [data-bin]")
    add("--thresholdtgt", metavar="N", default=0, type=int, help="drop target words seen fewer times [0]")
    add("--thresholdsrc", metavar="N", default=0, type=int, help="drop source words seen fewer times [0]")
    add("--tgtdict", metavar="FP", help="reuse this target dictionary")
    add("--srcdict", metavar="FP", help="reuse this source dictionary")
    add("--nwordstgt", metavar="N", default=-1, type=int, help="target words to keep, specials included (-1: all)")
    add("--nwordssrc", metavar="N", default=-1, type=int, help="source words to keep, specials included (-1: all)")
    add("--dataset-impl", default="mmap", choices=DATASET_IMPLS, help="output format [mmap]")
    add("--joined-dictionary", action="store_true", help="one dictionary for source and target")
    add("--only-source", action="store_true", help="there is no target side (masked LM)")
    add("--padding-factor", metavar="N", default=8, type=int, help="pad the dictionary to a multiple of N [8]")
    add("--workers", metavar="N", default=1, type=int, help="parallel worker processes [1]")
    add("--dict-only", action="store_true", help="only build the dictionary")
    add("--keep-empty", action="store_true", help="accepted: blank lines, which separate documents, are always kept")
    add("--jsonlines", action="store_true", help="with --bpe: every line is a JSON object whose text is encoded")
    return group


def get_args(data: Any, task: str = DEFAULT_TASK, arch: str = "roberta", **overrides: Any) -> argparse.Namespace:
    """A Namespace as if from the command line ``data --task task --arch arch``, with ``overrides`` as attributes."""
    words = [str(data), "--task", task, "--arch", arch]
    for name in ("criterion", "optimizer", "lr_scheduler", "bpe", "tokenizer"):
        if isinstance(overrides.get(name), str):
            words += [f"--{name.replace('_', '-')}", overrides[name]]
    parser = get_training_parser(task)
    parser.stage = ""
    parser.set_defaults(lr=field_specs(SECTIONS["optimization"])["lr"].default)
    args = parse_args_and_arch(parser, words)
    for key, value in overrides.items():
        setattr(args, key, value)
    return args


def parse_args_and_arch(
    parser: argparse.ArgumentParser,
    input_args: Sequence[str] | None = None,
    parse_known: bool = False,
    suppress_defaults: bool = False,
    modify_parser: Callable[[argparse.ArgumentParser], None] | None = None,
) -> Any:
    """Parse in two stages: component names, then everything with the flags of those components.

    ``parse_known`` returns (Namespace, unknown words) instead of stopping at unknown ones; ``suppress_defaults`` leaves
    out whatever was not given. A user's mistake prints one line and exits with status 2, as argparse does.
    """
    words = list(sys.argv[1:] if input_args is None else input_args)
    try:
        _import_user_dir(words)
        if modify_parser is not None:
            modify_parser(parser)
        wants_help = "-h" in words or "--help" in words
        _add_component_flags(parser, [word for word in words if word not in ("-h", "--help")], wants_help)
        if modify_parser is not None:
            modify_parser(parser)
        if suppress_defaults:
            return _parse_given(parser, words)
        args, extra = parser.parse_known_args(words) if parse_known else (parser.parse_args(words), None)
        _complete(args)
        _check(args)
    except FairseqError as error:
        parser.error(str(error))
    return (args, extra) if parse_known else args


def _import_user_dir(words: Sequence[str]) -> None:
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--user-dir", default=None)
    import_user_module(first.parse_known_args(words)[0])


def _add_component_flags(parser: argparse.ArgumentParser, words: list[str], wants_help: bool) -> None:
    """The flags of the components that ``words`` (without --help) choose."""
    chosen, _ = parser.parse_known_args(words)
    stage = getattr(parser, "stage", "")
    names = {group: getattr(chosen, group, None) for group in (*GROUPS, "arch")}
    if stage == "train" and names["criterion"] is None and names["task"] in CRITERIONS:
        names["criterion"] = names["task"]
        parser.set_defaults(criterion=names["task"])
    _drop_old_defaults(names, stage, wants_help)
    if names["scoring"] == "bleu":
        names["scoring"] = None  # the original's default, for generation only
    if names["arch"] is not None:
        _add_model(parser, names["arch"], words)
        if wants_help:
            _show_defaults(parser, names["arch"])
    if stage == "validate" and names["task"] is None:
        parser.add_argument("data", help="directory of the binarized data")
    for group, registry in GROUPS.items():
        name = names[group]
        if name is not None and not (stage == "preprocess" and group not in ("bpe", "tokenizer")):
            section = parser.add_argument_group(f"{group.replace('_', ' ')}: {name}")
            cls = None if _has_own_flags(registry, name) else registry.config_class(name)
            _add_component(parser, section, cls, functools.partial(registry.get, name), False)


def _drop_old_defaults(names: dict[str, Any], stage: str, wants_help: bool) -> None:
    """The original's default task and criterion are out of scope; help shows what most want."""
    for group, old in (("task", OLD_TASK), ("criterion", OLD_CRITERION)):
        if names.get(group) == old and stage != "train" and (stage or group == "criterion"):
            names[group] = None  # nothing is built from it
    if wants_help and stage == "train":
        names["arch"] = names.get("arch") or "roberta"
        names["optimizer"] = names.get("optimizer") or "adam"


def _add_model(parser: argparse.ArgumentParser, arch: str, words: list[str]) -> None:
    """The flags of an architecture, and of the variants that ``words`` or the architecture put into its slots."""
    group = parser.add_argument_group(f"architecture: {arch}")
    cls, model = model_config_class(arch), ARCHITECTURE_MODELS.get(arch, arch)
    own = _has_own_flags(MODELS, model)
    _add_component(parser, group, None if own else cls, functools.partial(MODELS.get, model), True)
    if cls is None:
        return
    for key, (default, _) in legacy.OUT_OF_SCOPE["model"].items():
        flag = f"--{key.replace('_', '-')}"
        if key not in field_specs(cls) and flag not in parser._option_string_actions:
            kwargs: dict[str, Any] = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
            if isinstance(default, bool):
                group.add_argument(flag, action="store_true", **kwargs)
            else:
                group.add_argument(flag, type=type(default) if default is not None else str, **kwargs)

    if isinstance(parser, FairseqParser):
        parser.model_class = cls
    given, _ = parser.parse_known_args(words)
    for slot, name in chosen_variants(arch, vars(given)).items():
        registry = slots_of(cls)[slot]
        options = registry.config_class(name)
        if options is not None:
            gen_parser_from_dataclass(parser.add_argument_group(f"{registry.kind}: {name}"), options, True)


def _show_defaults(parser: argparse.ArgumentParser, arch: str) -> None:
    """Say in the help of the model's flags what the architecture fills in."""
    cls = model_config_class(arch)
    if cls is None or arch not in ARCHITECTURES:
        return
    filled = argparse.Namespace()
    ARCHITECTURES.get(arch)(filled)
    specs = {spec.dest: spec for spec in field_specs(cls).values()}
    for action in parser._actions:
        if (
            action.dest in specs
            and action.default is argparse.SUPPRESS
            and action.help not in (None, argparse.SUPPRESS)
        ):
            spec = specs[action.dest]
            value = getattr(filled, spec.name, spec.default)
            if value not in (None, False, ""):
                action.help = f"{action.help} [{'on' if value is True else value}]"


def _has_own_flags(registry: Registry[Any], name: str) -> bool:
    """Whether ``name`` is a plugin's class with an ``add_args`` of its own, whatever its configuration class says."""
    kinds = getattr(registry.registered().get(name), "__mro__", ())
    owner = next((kind for kind in kinds if "add_args" in vars(kind)), None)
    return owner is not None and owner.__module__.partition(".")[0] != "fairseq"


def _add_component(
    parser: argparse.ArgumentParser, group: Any, cls: type | None, load: Callable[[], Any], model: bool
) -> None:
    """Flags from the configuration class or, without one, from the component's own ``add_args``."""
    if cls is not None:
        gen_parser_from_dataclass(group, cls, delete_default=model)
        return
    add_args = getattr(load(), "add_args", None)
    if add_args is None:
        return
    if model:
        group.argument_default = argparse.SUPPRESS
    try:
        add_args(group if model else parser)
    except argparse.ArgumentError as error:
        raise FairseqError(f"option of {group.title} exists already: {error}") from None


def _parse_given(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Only what was typed; the parser's own defaults are gone afterwards."""
    parser._defaults.clear()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return parser.parse_args(words)


def _complete(args: argparse.Namespace) -> None:
    """What follows from other options, for callers that read the Namespace itself."""
    for key in ("batch_size", "max_tokens"):
        if hasattr(args, key) and getattr(args, f"{key}_valid", None) is None:
            setattr(args, f"{key}_valid", getattr(args, key))
    for kind in ("fp16", "bf16"):
        if getattr(args, f"memory_efficient_{kind}", False):
            setattr(args, kind, True)
    args.no_seed_provided = getattr(args, "seed", None) is None
    if args.no_seed_provided:
        args.seed = 1


def _check(args: argparse.Namespace) -> None:
    """Mandatory options must be given; out-of-scope ones may be given at their default only."""
    for key, value in vars(args).items():
        if isinstance(value, str) and value == MISSING:
            if key == "lr":
                raise ConfigError("the learning rate is missing: give --lr, for example --lr 0.0005")
            raise ConfigError(f"option --{key.replace('_', '-')} must be given for the chosen components")
    for section, table in legacy.OUT_OF_SCOPE.items():
        if section in SECTIONS or section == "model":
            for key in table:
                if hasattr(args, key):
                    legacy.check_value(section, key, getattr(args, key))
    legacy.check_value("distributed_training", "ddp_backend", getattr(args, "ddp_backend", None))
