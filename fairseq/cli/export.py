"""``fairseq-export``: a model as a graph for other runtimes, ONNX or ``torch.export``."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq.cli.common import run_command
from fairseq.dataclass.flags import FairseqParser
from fairseq.dataclass.user_module import import_user_module

PROGRAM = "fairseq-export"
FORMATS = ("onnx", "torch-export")
OUTPUTS = ("logits", "features", "head")
_EXAMPLES = """\
examples:
  fairseq-export --format onnx checkpoints model.onnx
  fairseq-export --format onnx --output features checkpoints encoder.onnx
  fairseq-export --format onnx --int8 --measure valid.txt checkpoints model.int8.onnx
"""
MEASURED_LINES = 64
BATCH = 8


def get_parser(program: str = PROGRAM) -> argparse.ArgumentParser:
    parser = FairseqParser(
        prog=program,
        description="Write a model as a graph that runs without fairseq, for any batch and length.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--format", required=True, choices=FORMATS, help="what DST shall be")
    parser.add_argument(
        "--output",
        choices=OUTPUTS,
        default="logits",
        help="what the graph gives: logits (B, T, V) of the masked-LM head, features (B, T, C), or those of the task head "
        "[%(default)s]",
    )
    parser.add_argument("--int8", action="store_true", help="onnx only: matrices of 8 bits, for CPUs")
    parser.add_argument(
        "--measure", metavar="TEXT", type=Path, help="with --int8: a text file on which loss and speed are compared"
    )
    parser.add_argument("--user-dir", metavar="DIR", help="import this plugin directory first")
    parser.add_argument(
        "source_path", metavar="SRC", type=Path, help="a checkpoint, or a folder with one or of Transformers"
    )
    parser.add_argument("target_path", metavar="DST", type=Path, help="file to write")
    return parser


def main(args: argparse.Namespace) -> None:
    from fairseq.errors import ConfigError  # --help does not wait for torch
    from fairseq.file_io import check_outputs
    from fairseq.interop.convert import read_any
    from fairseq.interop.export import export

    import_user_module(args)
    if args.int8 and args.format != "onnx":
        raise ConfigError("--int8 is of --format onnx only")
    if args.measure and not (args.int8 and args.output == "logits"):
        raise ConfigError("--measure compares the losses of --int8, which need --output logits")
    path = args.target_path.with_suffix(".float32.onnx") if args.int8 else args.target_path
    check_outputs(sorted({args.target_path, path}), [args.source_path, *([args.measure] if args.measure else [])])
    model = read_any(args.source_path)
    error = export(model, args.format, path, args.output)
    compared = "not compared with the model" if error is None else f"differs from the model by {error:.1e} at most"
    print(f"wrote {path} ({args.format}, {args.output}; {compared})")
    if args.int8:
        _round(args, path, model)


def _round(args: argparse.Namespace, path: Path, model: Any) -> None:
    from fairseq.interop.int8 import compare, masked_batches, write_int8

    write_int8(path, args.target_path)
    small, large = (file.stat().st_size / 2**20 for file in (args.target_path, path))
    print(f"wrote {args.target_path} (8 bits, {small:.1f} MiB instead of {large:.1f})")
    if args.measure:
        hub = _hub(args.source_path, model)
        dictionary = hub.task.source_dictionary
        rows = [hub.encode(line)[: hub.model.max_positions()] for line in _lines(args.measure)]
        batches = masked_batches(rows, hub.task.mask_idx, dictionary.pad(), BATCH)
        print(compare(path, args.target_path, batches, dictionary.pad()).sentence())


def _hub(path: Path, model: Any) -> Any:
    from fairseq.models.roberta import RobertaModel

    stored = (model.state.get("cfg") or {}).get("bpe")
    return RobertaModel.from_pretrained(str(path), **({} if stored else {"bpe": None}))


def _lines(path: Path) -> list[str]:
    from fairseq.finetune.reading import read_lines

    found = (line.strip() for _, line in read_lines(path))
    return list(itertools.islice(filter(None, found), MEASURED_LINES))


def cli_main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    run_command(PROGRAM, lambda: main(get_parser().parse_args(argv)))


if __name__ == "__main__":
    cli_main()
