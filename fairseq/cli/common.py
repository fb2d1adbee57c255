"""What the commands share: how they end, the options of encoders, and loading the model that ``--path`` names.

A user's mistake, or a file that cannot be read or written, is one line and exit status 2, Ctrl-C is status 130. A reader
of the output that goes away (``| head``) ends the command without a word, with the status 141 of a signal SIGPIPE. What
the encoding of the output lacks is printed as an escape.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from fairseq.cli.process import prepare_to_compute
from fairseq.dataclass.base import field_specs
from fairseq.dataclass.flags import gen_parser_from_dataclass
from fairseq.errors import ConfigError, DataNotFoundError, FairseqError
from fairseq.models.roberta.addresses import CHECKPOINTS, PUBLISHED, checkpoint_in
from fairseq.registry import BPES, MODELS

if TYPE_CHECKING:
    from fairseq.dataclass.configs import FairseqConfig

T = TypeVar("T")

MISTAKE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141


def run_command(program: str, main: Callable[[], T]) -> T:
    """Run ``main``; what the user can repair ends ``program`` with one line and its status.

    That is a FairseqError, a KeyboardInterrupt, an error of the system, or too little memory. Every other exception is a bug
    and propagates with its traceback.
    """
    _prepare_streams()
    try:
        try:
            result = main()
        except SystemExit:  # --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return result
    except FairseqError as error:
        fail(program, error)
    except KeyboardInterrupt:
        fail(program, "interrupted", INTERRUPTED)
    except OSError as error:
        _fail_with_system(program, error)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error):  # torch's words, on the CPU
            raise
        fail(program, f"too little memory ({error}): make the model (model.*) or the batches smaller")


def _prepare_streams() -> None:
    """Standard streams that are there (a caller may have closed some), and an output that can show every character."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (until the end of the process)
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")  # as standard error does


def _fail_with_system(program: str, error: OSError) -> NoReturn:
    """End ``program`` for an error of the system: what cannot be read or written, and why."""
    if isinstance(error, BrokenPipeError) and error.filename is None:
        _finish_output()
        sys.exit(BROKEN_PIPE)
    # Errors of a file that is open already have no name: it is the output, as a rule.
    place = "cannot write the output" if error.filename is None else os.fsdecode(error.filename)
    fail(program, f"{place}: {error.strerror or error}")


def _finish_output() -> None:
    """Write what is left to standard output; what cannot be written is forgotten."""
    try:
        sys.stdout.flush()
    except OSError:
        # The interpreter would try again at its end, and complain.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the end of the process)


def fail(program: str, message: object, status: int = MISTAKE) -> NoReturn:
    """Print ``program: error: message`` as one line to standard error and exit with ``status``."""
    _finish_output()
    print(f"{program}: error: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
    sys.exit(status)


def set_up(args: FairseqConfig | argparse.Namespace) -> FairseqConfig:
    """Set up memory, threads and plugins of a process that runs a model; returns the configuration that ``args`` are."""
    prepare_to_compute()
    # Imported here so that --help and mistakes on the command line do not wait for torch.
    from fairseq.dataclass.build import convert_namespace_to_omegaconf
    from fairseq.dataclass.user_module import import_user_module

    cfg: Any = convert_namespace_to_omegaconf(args) if isinstance(args, argparse.Namespace) else args
    import_user_module(cfg.common)
    return cfg


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of at most ``size`` consecutive items."""
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch


def byte_progress(args: argparse.Namespace) -> Callable[[str, int], Any] | None:
    """Makes the bar of a file that is read, by its path and bytes; None when ``args`` wants no bars."""
    if getattr(args, "no_progress_bar", False) or getattr(args, "log_format", None) in ("none", "json"):
        return None
    import tqdm

    def bar(path: str, size: int) -> Any:
        # disable=None: only where there is a terminal
        return tqdm.tqdm(
            disable=None,
            total=size,
            desc=os.path.basename(path),
            unit="B",
            unit_scale=True,
            file=sys.stderr,
            leave=False,
        )

    return bar


def _bpe_configs() -> list[Any]:
    return [config for name in BPES.names() if (config := BPES.config_class(name)) is not None]


def add_bpe_options(parser: argparse.ArgumentParser) -> None:
    """Flags for the files of every encoder; a flag that is not given is absent from the Namespace."""
    options = parser.add_argument_group("BPE files")
    for config in _bpe_configs():
        gen_parser_from_dataclass(options, config(), delete_default=True)


def given_bpe_options(args: argparse.Namespace) -> dict[str, Any]:
    """The encoders' settings that the user gave."""
    names = {field for config in _bpe_configs() for field in field_specs(config) if not field.startswith("_")}
    return {key: value for key, value in vars(args).items() if key in names}


def bpe_settings(args: argparse.Namespace) -> Any:
    """Settings (picklable) of the encoder ``args.bpe``, None when there is none."""
    if not args.bpe:
        return None
    config_class = BPES.config_class(args.bpe)
    if config_class is None:
        return args  # a plugin's encoder without a dataclass takes the Namespace
    settings: Any = config_class.from_namespace(args)  # type: ignore[attr-defined]
    settings._name = args.bpe
    return settings


def find_dictionary(srcdict: str | None, args: argparse.Namespace) -> str:
    """The path of ``--srcdict`` (a file, or a directory with ``dict.txt``), or of the one that belongs to ``--bpe``.

    That is ``dict.txt`` beside the encoder's files, as published models come; for GPT-2's files by address, the
    published one. Raises ConfigError when there is none.
    """
    if srcdict is not None:
        path = Path(srcdict) / "dict.txt" if Path(srcdict).is_dir() else Path(srcdict)
        if not path.is_file():
            raise DataNotFoundError(f"dictionary not found: {path} (given as --srcdict)")
        return str(path)
    for value in given_bpe_options(args).values():
        beside = Path(str(value)).parent / "dict.txt"
        if isinstance(value, str) and Path(value).is_file() and beside.is_file():
            return str(beside)
    if args.bpe == "gpt2" and not given_bpe_options(args):
        from fairseq.data.cached_path import cached_path
        from fairseq.data.encoders.configs import GPT2_DICT

        return cached_path(GPT2_DICT, option="--srcdict")
    raise ConfigError("give the dictionary of the model with --srcdict dict.txt; there is none beside the BPE's files")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """``--path`` and what else `load_hub` reads, beside the files of the encoders."""
    parser.add_argument(
        "--path", required=True, help="checkpoint file, directory with one, or the name of a published model"
    )
    parser.add_argument(
        "--bpe",
        choices=[*BPES.names(), "none"],
        help="how texts become pieces; none: texts are dictionary symbols; default: as in training, else gpt2",
    )
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU when there is a GPU")
    parser.add_argument("--user-dir", metavar="DIR", help="import this plugin directory first")


def load_hub(args: argparse.Namespace, beside: str = "dict.txt") -> Any:
    """The hub interface of ``args.path``, in evaluation mode, on the GPU if there is one.

    The dictionary is that of ``args.data``, else of the checkpoint's directory if that holds ``beside``, else of the
    data that the model was trained on.
    """
    import torch

    model, place, file = "roberta", args.path, "model.pt"
    families = [name for name, addresses in PUBLISHED.items() if args.path in addresses]
    published = bool(families) and not Path(args.path).exists()
    if published:
        model = families[0]
    else:
        place, file = find_checkpoint(args.path)
    overrides = given_bpe_options(args)
    if args.user_dir is not None:
        overrides["user_dir"] = args.user_dir
    data = str(Path(args.data).resolve()) if args.data is not None else None
    foreign = file == CHECKPOINTS[0] and not (Path(place) / file).exists()
    if data is None and (published or foreign or (Path(place) / beside).exists()):
        data = "."
    if args.bpe is not None:
        overrides["bpe"] = None if args.bpe == "none" else args.bpe
    hub = MODELS.get(model).from_hub(place, file, data, **overrides)
    hub.eval()
    return hub.cuda() if torch.cuda.is_available() and not args.cpu else hub


def find_checkpoint(path: str) -> tuple[str, str]:
    """(directory, file) of a checkpoint given as a file or as its directory."""
    from fairseq.models.hub import format_of

    found = Path(path)
    if found.is_file():
        return str(found.parent), found.name
    if not found.is_dir():
        raise DataNotFoundError(f"--path {path!r} is neither a checkpoint, a directory with one, nor a published model")
    checkpoint = checkpoint_in(found)
    if checkpoint is not None:
        return str(found), checkpoint.name
    if format_of(found) is not None:  # of Transformers: converted when it is loaded
        return str(found), CHECKPOINTS[0]
    raise DataNotFoundError(f"there is no {', '.join(CHECKPOINTS[:-1])} or {CHECKPOINTS[-1]} in {path}")
