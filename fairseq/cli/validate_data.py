"""``fairseq-validate-data``: are preprocessed data what was written, and sound in themselves?"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairseq.cli.common import run_command
from fairseq.dataclass.flags import FairseqParser
from fairseq.errors import DataError, DataNotFoundError, FairseqError
from fairseq.file_io import SCRATCH, split_paths
from fairseq.locks import claimed

if TYPE_CHECKING:
    from fairseq.data.validation import FolderReport

PROGRAM = "fairseq-validate-data"
FOUND_PROBLEMS = 1
_EXPLAINED = """\
Every directory with data in DIR is looked at (data-bin itself; input0, input1 and label; one for each language):
  - the files are those that were written: all there, with the sizes and checksums in manifest.json, which the commands
    for preprocessing write beside them (data without one are checked in the other ways);
  - every index (.idx) is whole, and its items lie one after the other and end where the .bin does;
  - every id is one of a symbol in dict.txt, and every line ends with </s> if the others do;
  - dict.txt can be read, and is the same in all directories of data-bin1:data-bin2;
  - input0, input1, ... and label have equally many lines.
Prints a table, then every problem. Exit status: 0 all is well, 1 there are problems, 2 nothing could be checked.

examples:
  fairseq-validate-data data-bin
  fairseq-validate-data data-bin1:data-bin2 RTE-bin
after a change on purpose (a file that was left out, a dict.txt that was edited), or for data that have no manifest:
  fairseq-validate-data --write-manifest data-bin
"""


def get_parser() -> argparse.ArgumentParser:
    parser = FairseqParser(
        prog=PROGRAM,
        description="Check preprocessed data: read all files once and name everything that is wrong with them.",
        epilog=_EXPLAINED,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "dirs",
        nargs="+",
        metavar="DIR",
        help="directory that a preprocessing command wrote; several with : between them",
    )
    parser.add_argument(
        "--write-manifest",
        action="store_true",
        help="check the files alone, without a manifest, and if they are sound, write one (manifest.json) that says how"
        " they are now",
    )
    parser.add_argument("--no-progress-bar", action="store_true", help="show no bar")
    return parser


def main(args: argparse.Namespace) -> int:
    """Print what was found in ``args.dirs``; returns the exit status. Raises FairseqError when there is no data."""
    groups = [[_folders(directory) for directory in split_paths(paths)] for paths in args.dirs]
    problems: list[str] = []
    changed: list[Path] = []
    with _bar(args, groups) as bar:
        for paths, group in zip(args.dirs, groups, strict=True):
            problems += _check_directories(paths, group, args.write_manifest, bar, changed)
    sys.stdout.flush()
    for problem in problems:
        print(f"problem: {problem}")
    if problems:
        print(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}")
        for folder in changed:
            accept = f"{PROGRAM} --write-manifest {shlex.quote(str(folder))}"
            print(
                f"{folder}: damage, unless it was changed on purpose: copy or preprocess it again, or accept it with {accept}"
            )
        return FOUND_PROBLEMS
    print("no problem found")
    return 0


def _folders(directory: str) -> list[Path]:
    from fairseq.data.validation import data_folders

    if os.path.isfile(directory):
        raise DataNotFoundError(f"{directory} is a file; give the directory that it is in")
    if not os.path.isdir(directory):
        raise DataNotFoundError(f"data directory not found: {directory}")
    found = data_folders(Path(directory))
    if not found and any(Path(directory).glob(f"{SCRATCH}*")):
        raise DataNotFoundError(
            f"{directory} holds only what a preprocessing command has begun: it was killed, or is still at work; unless it is,"
            " give the command again"
        )
    if not found:
        raise DataNotFoundError(
            f"{directory} has no preprocessed data (no dict.txt, .idx, .bin or manifest.json); give a directory that"
            " fairseq-preprocess or fairseq-preprocess-task wrote"
        )
    return found


def _bar(args: argparse.Namespace, groups: list[list[list[Path]]]) -> Any:
    """A bar over the bytes of all files, where there is a terminal and the work takes longer than a moment."""
    import tqdm

    from fairseq.data.validation import data_files

    folders = [folder for group in groups for found in group for folder in found]
    size = sum((folder / name).stat().st_size for folder in folders for name in data_files(folder))
    shown = True if args.no_progress_bar else None  # None: only where there is a terminal
    return tqdm.tqdm(total=size, unit="B", unit_scale=True, file=sys.stderr, leave=False, delay=1, disable=shown)


def _check_directories(paths: str, group: list[list[Path]], write: bool, bar: Any, changed: list[Path]) -> list[str]:
    """The problems of the directories of one argument, whose tables are printed.

    ``changed`` gets the folders that are sound in themselves, but not as their manifest says.
    """
    from fairseq.data.validation import check_folder, check_together

    problems = []
    for folders in group:
        reports = [check_folder(folder, bar.update, not write) for folder in folders]
        for report in reports:
            bar.clear()
            _print_table(report)
            if report.changed and report.changed == len(report.problems):
                changed.append(report.folder)
        found = [*(problem for report in reports for problem in report.problems), *check_together(reports)]
        if write and not found:
            for report in reports:
                _write_manifest(report)
        problems += found
    return problems + _check_shards(paths, group)


def _check_shards(paths: str, group: list[list[Path]]) -> list[str]:
    """Directories that take turns have one dictionary and the same splits for training."""
    from fairseq.data.dictionary import Dictionary
    from fairseq.data.shards import check_dictionary

    first, *others = split_paths(paths)
    path = Path(first, "dict.txt")
    if not others or not path.is_file():
        return []
    problems = []
    try:
        dictionary = Dictionary.load(path)
    except FairseqError:
        return []  # said already
    for directory in others:
        try:
            check_dictionary(directory, dictionary, first)
        except DataError as error:
            problems.append(str(error))
        if (Path(first) / "train.idx").exists() and not (Path(directory) / "train.idx").exists():
            problems.append(f"{directory} has no train.idx, but its turn to train comes after {first}")
    return problems


def _write_manifest(report: FolderReport) -> None:
    from fairseq.data import manifest
    from fairseq.data.inventory import describe_files

    with claimed(report.folder, PROGRAM, "wait for it"):
        manifest.write_manifest(
            report.folder / manifest.NAME, describe_files(report.folder, report.files, report.checksums)
        )
    print(f"{report.folder / manifest.NAME}: written")


def _print_table(report: FolderReport) -> None:
    titles = ("", "items", "tokens", "empty", "type", "highest id", "manifest")
    rows: list[tuple[str, ...]] = [titles]
    for row in report.rows:
        numbers = (_number(value) for value in (row.items, row.tokens, row.empty))
        rows.append((row.name, *numbers, row.dtype, _number(row.highest), row.agrees))
    widths = [max(len(row[k]) for row in rows) for k in range(len(titles))]
    print(f"{report.folder} ({report.read / 1e6:,.1f} MB)")
    for name, *cells in rows:
        line = "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        print(f"  {name:<{widths[0]}}  {line}".rstrip())
    for note in report.notes:
        print(f"  note: {note}")


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def cli_main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    status = run_command(PROGRAM, lambda: main(get_parser().parse_args(argv)))
    if status:
        sys.exit(status)


if __name__ == "__main__":
    cli_main()
