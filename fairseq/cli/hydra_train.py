"""fairseq-hydra-train: train from YAML files and ``group.key=value`` overrides.

    fairseq-hydra-train --config-dir D --config-name N task.data=data-bin optimization.lr=[0.0005]

Hydra composes the settings, makes the run directory (``outputs/DATE/TIME``, or ``multirun/...`` with ``-m``), changes
into it and installs its log format; the configuration is then completed and checked as for fairseq-train. Relative
paths to data, checkpoints and plugins start from the directory where the command was launched.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fairseq.cli.common import run_command
from fairseq.errors import ConfigError, FairseqError, TrainingError

logger = logging.getLogger(__name__)

_EXAMPLE = "fairseq-hydra-train --config-dir . --config-name base task.data=data-bin"
_HELP = f"""\
usage: fairseq-hydra-train [--config-dir DIR --config-name NAME] [group.key=value ...] [options]

Train as a YAML file says: DIR/NAME.yaml. Settings on the command line win over the file.

example:
  {_EXAMPLE} optimization.lr=[0.0005] common.seed=2

  base.yaml:
    task: {{_name: masked_lm, data: "???", tokens_per_sample: 512}}
    criterion: masked_lm
    model: {{_name: roberta_base}}
    optimizer: adam
    lr_scheduler: {{_name: polynomial_decay, warmup_updates: 1000}}
    optimization: {{lr: [0.0005], max_update: 20000}}
    dataset: {{batch_size: 16}}

options:
  --config-dir DIR      directory of YAML files
  --config-name NAME    the file in it, without .yaml
  -m, --multirun        a run for each combination of the values given as key=1,2
  --cfg job             show the composed settings instead of training
  --version             show the version and exit
  --hydra-help          Hydra's own options

The keys are the names of the flags of fairseq-train in their groups: common, dataset, optimization, checkpoint,
distributed_training, ema, task, criterion, model, optimizer, lr_scheduler, bpe. A run works in outputs/DATE/TIME."""

_SCHEMA = "fairseq_defaults"
_HYDRA = {"job": {"chdir": True}, "help": {"app_name": "fairseq-hydra-train"}}


def main(cfg: Any) -> float | None:
    """One hydra job: complete ``cfg``, train, and return the last validation value (for sweepers)."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import get_original_cwd

    from fairseq.cli import train
    from fairseq.logging.setup import configure_logging

    job_logging = HydraConfig.get().job_logging if HydraConfig.initialized() else None
    full = complete(cfg, get_original_cwd() if job_logging is not None else os.getcwd(), job_logging)
    if full.common.reset_logging:
        configure_logging(reset=True)
    try:
        return train.main(full)
    except Exception:
        if not full.common.suppress_crashes:
            raise
        logger.exception("the run crashed; common.suppress_crashes=true lets the sweep go on")
        return None


def complete(cfg: Any, launch_dir: str, job_logging: Any = None) -> Any:
    """The checked, complete configuration for what hydra composed; ``job_logging`` is stored beside it."""
    from omegaconf import OmegaConf

    from fairseq.dataclass.base import MISSING
    from fairseq.dataclass.build import build_config, require_complete
    from fairseq.dataclass.user_module import import_user_module

    tree: Any = OmegaConf.to_container(cfg, resolve=False, enum_to_str=True)
    if job_logging is not None:
        stored: Any = OmegaConf.to_container(job_logging, resolve=True)
        for handler in stored.get("handlers", {}).values():
            if "filename" in handler:
                handler["filename"] = os.path.basename(handler["filename"])
        tree["job_logging_cfg"] = stored
    resolve_paths(tree, Path(launch_dir))
    common = OmegaConf.create({"user_dir": (tree.get("common") or {}).get("user_dir")})
    import_user_module(common)
    if (tree.get("optimization") or {}).get("lr") == MISSING:  # before others follow it
        raise ConfigError("optimization.lr is missing: give the learning rate, for example optimization.lr=[0.0005]")
    full = build_config(tree)
    require_complete(full)
    return full


def resolve_paths(tree: dict[str, Any], launch_dir: Path) -> None:
    """Make relative input paths absolute, in place: hydra has changed the working directory since they were typed."""
    from fairseq.file_io import split_paths

    task: Any = tree.get("task")
    data = task.get("data") if isinstance(task, dict) else None
    if isinstance(data, str) and data != "???" and "://" not in data and "${" not in data:
        parts = split_paths(data, base=launch_dir)
        task["data"] = os.pathsep.join(_absolute(part, launch_dir) for part in parts)
    checkpoint = tree.get("checkpoint") or {}
    for section, keys in (
        (checkpoint, ("finetune_from_model", "continue_once", "restore_file")),
        (tree.get("ema") or {}, ("ema_seed_model",)),
        (tree.get("common_eval") or {}, ("path",)),
    ):
        for key in keys:
            # The default restore file is looked for in save_dir, not here.
            if isinstance(section.get(key), str) and section[key] not in ("checkpoint_last.pt", "???"):
                section[key] = _absolute(section[key], launch_dir)
    for name in ("bpe", "tokenizer"):
        if isinstance(tree.get(name), dict):
            _existing(tree[name], launch_dir, [key for key in tree[name] if key != "_name"])
    _existing(tree.get("common") or {}, launch_dir, ["user_dir"])


def _existing(section: dict[str, Any], launch_dir: Path, keys: Sequence[str]) -> None:
    """Settings that may be a path or something else (a name, an address): absolute when such a file exists."""
    for key in keys:
        value = section.get(key)
        if isinstance(value, str) and value and (launch_dir / value).exists():
            section[key] = _absolute(value, launch_dir)


def _absolute(path: str, launch_dir: Path) -> str:
    if "://" in path or "${" in path or path == "" or os.path.isabs(path):
        return path
    return str(launch_dir / path)


def cli_main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    run_command("fairseq-hydra-train", lambda: compose_and_run(sys.argv[1:] if argv is None else argv, main))


def compose_and_run(words: Sequence[str], job: Callable[[Any], Any]) -> None:
    """Compose and run ``job`` as the command line ``words`` asks for."""
    if not words:
        raise ConfigError(f"no configuration is chosen; for example: {_EXAMPLE} (--help says more)")
    if "-h" in words or "--help" in words:
        print(_HELP)
        return
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from fairseq.dataclass.flags import show_version
    from fairseq.dataclass.hydra_yaml import find_primary, normalize_overrides, normalize_sweep, read_primary, schema

    parser = get_args_parser()
    parser.prog = "fairseq-hydra-train"
    show_version(parser)
    parser.error = _usage_error  # type: ignore[method-assign, assignment]
    args = parser.parse_intermixed_args(list(words))  # settings may follow options such as --multirun
    primary = read_primary(find_primary(args.config_dir or args.config_path, args.config_name))
    normalize_sweep(primary)
    overrides = normalize_overrides(args.overrides, primary)
    store = ConfigStore.instance()
    store.store(name=_SCHEMA, node=OmegaConf.create({**schema(), "hydra": _HYDRA}))
    name = f"{primary.path.stem} (fairseq)"
    hydra_node = {"hydra": primary.hydra} if primary.hydra else {}
    store.store(
        name=name,
        node=OmegaConf.create({"defaults": [_SCHEMA, *primary.defaults, "_self_"], **primary.content, **hydra_node}),
    )
    failures: list[FairseqError] = []
    bugs: list[Exception] = []
    with _patched(_hydra_words(parser, args, name, overrides)):
        try:
            hydra.main(version_base="1.3", config_path=None, config_name=name)(_keeping(failures, bugs, job))()
        except (HydraException, OmegaConfBaseException) as error:
            cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
            hint = " (pip install hydra-submitit-launcher)" if "'hydra/launcher/submitit_" in str(error) else ""
            raise ConfigError(f"{error}{hint} {cause or ''}") from None
        except (AssertionError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
            if error in bugs or isinstance(error, FairseqError):
                raise
            raise ConfigError(f"hydra cannot use {primary.path}: {str(error) or type(error).__name__}") from None
        except Exception as error:
            if type(error).__module__.split(".")[0] != "submitit":
                raise
            raise TrainingError(" ".join(str(error).splitlines()[:2])) from None  # then come all lines of its log
    if failures:
        raise failures[0]


def _usage_error(message: str) -> None:
    raise ConfigError(f"{message}; settings are given as group.key=value, options are listed by --help")


def _keeping(failures: list[FairseqError], bugs: list[Exception], job: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``job`` for hydra: in a single run a user's mistake is kept for the command to report in its own words.

    Other exceptions go to ``bugs`` before they pass, so that they are told apart from those of hydra itself.
    """

    def hydra_job(cfg: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        try:
            return job(cfg)
        except FairseqError as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # the launcher may run it elsewhere
            failures.append(error)
            return None
        except Exception as error:
            bugs.append(error)
            raise

    hydra_job.__module__ = __name__  # hydra names the job and its log file after the module
    return hydra_job


def _hydra_words(parser: Any, args: Any, name: str, overrides: Sequence[str]) -> list[str]:
    """The command line for hydra: the same options, our configuration, the normalized overrides."""
    words = [f"--config-name={name}"]
    for action in parser._actions:
        value = getattr(args, action.dest, None)
        if (
            action.dest in ("overrides", "config_name", "config_path")
            or value in (None, False)
            or not action.option_strings
        ):
            continue
        words.append(action.option_strings[-1] if value is True else f"{action.option_strings[-1]}={value}")
    if args.config_dir is None and args.config_path is not None:
        words.append(f"--config-dir={args.config_path}")
    return [*words, *overrides]


@contextmanager
def _patched(words: list[str]) -> Any:
    """Hydra reads ``sys.argv``, and passes exceptions on only when this variable is set."""
    argv, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [argv[0], *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = full


if __name__ == "__main__":
    cli_main()
