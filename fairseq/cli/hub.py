"""Loading the model of a command line: a checkpoint file, a directory with one, or a published name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fairseq.cli.bpe_options import given_bpe_options
from fairseq.errors import DataNotFoundError
from fairseq.registry import BPES, MODELS

CHECKPOINTS = ("model.pt", "checkpoint_best.pt", "checkpoint_last.pt")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """``--path`` and what else `load` reads, beside the files of the encoders."""
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


def load(args: argparse.Namespace, beside: str = "dict.txt") -> Any:
    """The hub interface of ``args.path``, in evaluation mode, on the GPU if there is one.

    The dictionary is that of ``args.data``, else of the checkpoint's directory if that holds ``beside``, else of the
    data that the model was trained on.
    """
    import torch

    from fairseq.models.roberta.addresses import PUBLISHED

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
    if data is None and (published or (Path(place) / beside).exists()):
        data = "."
    if args.bpe is not None:
        overrides["bpe"] = None if args.bpe == "none" else args.bpe
    hub = MODELS.get(model).from_hub(place, file, data, **overrides)
    hub.eval()
    return hub.cuda() if torch.cuda.is_available() and not args.cpu else hub


def find_checkpoint(path: str) -> tuple[str, str]:
    """(directory, file) of a checkpoint given as a file or as its directory."""
    found = Path(path)
    if found.is_file():
        return str(found.parent), found.name
    if not found.is_dir():
        raise DataNotFoundError(f"--path {path!r} is neither a checkpoint, a directory with one, nor a published model")
    for name in CHECKPOINTS:
        if (found / name).is_file():
            return str(found), name
    raise DataNotFoundError(f"there is no {', '.join(CHECKPOINTS[:-1])} or {CHECKPOINTS[-1]} in {path}")
