"""``fairseq-preprocess``: build a dictionary and binarize text, with or without subword encoding on the way."""

from __future__ import annotations

import argparse
import filecmp
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairseq.cli.common import bpe_settings, byte_progress, run_command
from fairseq.cli.stopping import ends_when_asked, uninterrupted
from fairseq.data import manifest
from fairseq.errors import ConfigError, DataError, DataNotFoundError, FairseqError, OutOfScopeError
from fairseq.file_io import SCRATCH, check_outputs
from fairseq.locks import claimed
from fairseq.logging.setup import ends_quietly, log_to_files

if TYPE_CHECKING:
    from fairseq.data.dictionary import Dictionary
    from fairseq.data.preprocessing import CorpusWriter, Summary

# The original's name: its lines look the same, and $DESTDIR/preprocess.log holds what this logger says.
logger = logging.getLogger("fairseq_cli.preprocess")


class OutputExistsError(ConfigError, FileExistsError):
    """A dictionary is in the way (a FileExistsError, as callers of the original expect)."""


@dataclass
class FilePlan:
    """What is read and written: derived from the arguments once, so that the steps need no rules of naming."""

    args: argparse.Namespace
    scratch: str
    outputs: list[str] = field(default_factory=list)  # names in the scratch directory, in the order of publishing
    rows: list[tuple[str, str, Summary]] = field(default_factory=list)

    def lang_part(self, lang: str | None) -> str:
        args = self.args
        pair = f"{args.source_lang}-{args.target_lang}"
        if lang is not None:
            return f".{pair}.{lang}"
        return "" if args.only_source else f".{pair}"

    def dictionary_name(self, lang: str | None) -> str:
        return f"dict.{lang}.txt" if lang else "dict.txt"

    def train_file(self, lang: str | None) -> str:
        return f"{self.args.trainpref}{'.' + lang if lang else ''}"

    def inputs(self, lang: str | None) -> list[tuple[str, str]]:
        """(input file, split) of everything to binarize for one language."""
        suffix = f".{lang}" if lang else ""
        found = [(self.args.trainpref, "train")] if self.args.trainpref else []
        for prefixes, split in ((self.args.validpref, "valid"), (self.args.testpref, "test")):
            for k, prefix in enumerate(prefixes.split(",") if prefixes else ()):
                found.append((prefix, f"{split}{k or ''}"))
        return [(prefix + suffix, split) for prefix, split in found]

    def sides(self) -> list[tuple[str | None, bool]]:
        """(language, whether it is the target)."""
        sides = [(self.args.source_lang, False)]
        return sides if self.args.only_source else [*sides, (self.args.target_lang, True)]

    def new_file(self, name: str) -> str:
        """Where the output called ``name`` is made before it is published."""
        self.outputs.append(name)
        return os.path.join(self.scratch, name)


def main(args: argparse.Namespace) -> None:
    """Preprocess as ``args`` (see `fairseq.dataclass.parser.get_preprocessing_parser`) says.

    Files appear in ``args.destdir`` only when everything has succeeded. Raises FairseqError for what the user can
    repair: missing or malformed files, impossible combinations.
    """
    from fairseq.dataclass.user_module import import_user_module

    import_user_module(args)
    try:
        with claimed(args.destdir, "fairseq-preprocess", "wait for it, or choose another --destdir"):
            _logged(args)
    except OSError as error:
        if isinstance(error, FairseqError):
            raise
        where = f" {error.filename}" if error.filename else ""
        raise DataError(f"cannot preprocess into {args.destdir}: {error.strerror or error}{where}") from error


def _logged(args: argparse.Namespace) -> None:
    """The work, with ``preprocess.log`` beside its results."""
    handler = logging.FileHandler(os.path.join(args.destdir, "preprocess.log"), encoding="utf-8")
    logger.addHandler(ends_quietly(handler))
    try:
        log_to_files(logger, args)
        _check(args)
        for left in Path(args.destdir).glob(f"{SCRATCH}*"):  # nobody else is here
            shutil.rmtree(left, ignore_errors=True)
            logger.info(f"removed {left}, which a run that was killed had left")
        with tempfile.TemporaryDirectory(dir=args.destdir, prefix=SCRATCH) as scratch:
            _preprocess(FilePlan(args, scratch))
    finally:
        logger.removeHandler(handler)
        handler.close()


def _preprocess(plan: FilePlan) -> None:
    args, started = plan.args, time.perf_counter()
    dictionaries, writer = _dictionaries(plan)
    for (lang, _), dictionary in dictionaries.items():
        dictionary.save(plan.new_file(plan.dictionary_name(lang)))
    if not args.dict_only:
        for (lang, _), dictionary in dictionaries.items():
            for path, split in plan.inputs(lang):
                _binarize(plan, writer, dictionary, path, split, lang)
    if args.dataset_impl != "raw":  # whose outputs are what was read
        texts = [path for lang, _ in plan.sides() for path, _ in plan.inputs(lang)]
        check_outputs([os.path.join(args.destdir, name) for name in plan.outputs], texts)
    _publish(plan)
    if not args.dict_only:
        logger.info(f"Wrote preprocessed data to {args.destdir}")
        _print_summary(plan, time.perf_counter() - started)


def _publish(plan: FilePlan) -> None:
    """Put everything in its place. Old indexes go first and new ones come last: without them nothing can be read, so that
    whatever ends this in between, no new file is read with an old one. Meanwhile the manifest names none of these files."""
    from fairseq.data.inventory import describe_files

    scratch, destdir = Path(plan.scratch), Path(plan.args.destdir)
    kept = {name: entry for name, entry in _described(destdir).items() if name not in plan.outputs}
    manifest.write_manifest(scratch / "kept", kept)
    manifest.write_manifest(scratch / manifest.NAME, {**kept, **describe_files(scratch, plan.outputs)})
    _warn_of_others(plan, destdir)
    indexes = [name for name in plan.outputs if name.endswith(".idx")]
    with uninterrupted():
        os.replace(scratch / "kept", destdir / manifest.NAME)
        for name in indexes:
            (destdir / name).unlink(missing_ok=True)
        for name in [*(name for name in plan.outputs if name not in indexes), *indexes, manifest.NAME]:
            os.replace(scratch / name, destdir / name)


def _described(destdir: Path) -> manifest.Files:
    """What the manifest of ``destdir`` says of files that are there, where it can be read."""
    try:
        files = manifest.read_manifest(destdir) or {}
    except DataError as error:
        logger.warning(f"{error}; a new one is written, of the new files")
        return {}
    return {name: entry for name, entry in files.items() if (destdir / name).is_file()}


def _warn_of_others(plan: FilePlan, destdir: Path) -> None:
    """Warn when a dictionary is replaced, but not the datasets that were made with it."""
    for name in filter(manifest.is_dictionary, plan.outputs):
        if (destdir / name).is_file() and not filecmp.cmp(destdir / name, os.path.join(plan.scratch, name), False):
            datasets = (path.stem for path in sorted(destdir.glob("*.idx")) if path.name not in plan.outputs)
            left = [dataset for dataset in datasets if manifest.dictionary_of(dataset) == name]
            if left:
                logger.warning(
                    f"{destdir / name} is replaced by another dictionary, but {', '.join(left)} beside it was made with the old"
                    " one; preprocess it again, too"
                )


def _check(args: argparse.Namespace) -> None:
    """Everything that can be refused before any work is done."""
    if getattr(args, "alignfile", None) or getattr(args, "align_suffix", None):
        raise OutOfScopeError("--alignfile and --align-suffix are out of scope: they serve translation only")
    if args.dataset_impl in ("fasta", "huffman"):
        raise OutOfScopeError(f"--dataset-impl {args.dataset_impl} is out of scope; use mmap")
    if args.workers < 1:
        raise ConfigError(f"--workers must be at least 1, but is {args.workers}")
    if args.bpe and args.dataset_impl == "raw":
        raise ConfigError("--dataset-impl raw copies the text, so --bpe has no place to go; leave one of them out")
    if args.jsonlines and not args.bpe:
        raise ConfigError("--jsonlines needs --bpe: without it the lines must be symbols, not JSON")
    if args.joined_dictionary and args.srcdict and args.tgtdict:
        raise ConfigError("--joined-dictionary takes one of --srcdict and --tgtdict, not both")
    plan = FilePlan(args, "")
    if not args.only_source and args.source_lang is None and args.target_lang is None:
        raise ConfigError("give --only-source (masked language models), or --source-lang and --target-lang")
    for lang, is_target in plan.sides():
        if not _given_dictionary(args, is_target):
            path = os.path.join(args.destdir, plan.dictionary_name(lang))
            if os.path.exists(path):
                raise OutputExistsError(f"{path} exists already; remove it, or reuse it with --srcdict {path}")
            if not args.trainpref:
                raise ConfigError("--trainpref must be set when there is no --srcdict to build the dictionary from it")
        if not args.dict_only or (args.trainpref and not _given_dictionary(args, is_target)):
            for path, _ in plan.inputs(lang):
                if not os.path.isfile(path):
                    raise DataNotFoundError(f"input file not found: {path}")
        if args.trainpref and os.path.isfile(train := plan.train_file(lang)) and os.path.getsize(train) == 0:
            raise DataError(f"the training file {train} is empty: there is nothing to train on")


def _given_dictionary(args: argparse.Namespace, is_target: bool) -> str | None:
    if args.joined_dictionary:
        return args.srcdict or args.tgtdict
    return args.tgtdict if is_target else args.srcdict


def _dictionaries(plan: FilePlan) -> tuple[dict[tuple[str | None, bool], Dictionary], CorpusWriter]:
    """The dictionary of each side, read or counted, and the writer, which knows already what it has counted."""
    from fairseq.data.preprocessing import CorpusWriter, TextFormat, looks_encoded

    args, sides = plan.args, plan.sides()
    text = TextFormat(bpe_settings(args), args.jsonlines)
    if text.bpe is not None:
        inputs = [path for lang, _ in sides for path, _ in plan.inputs(lang)]
        for path in filter(os.path.isfile, inputs):
            what = looks_encoded(path, text)
            if what:
                raise DataError(
                    f"{path} consists of {what}, so it is encoded already and --bpe {args.bpe} would encode it twice;"
                    " leave --bpe out, or give the raw text"
                )
    writer = CorpusWriter(text, args.workers, plan.scratch, args.dataset_impl, byte_progress(args))
    load, build = _dictionary_functions(plan, writer)
    if args.joined_dictionary:
        given = _given_dictionary(args, False)
        files = sorted({plan.train_file(lang) for lang, _ in sides})
        joined = load(given) if given else build(files, args.thresholdsrc, args.nwordssrc)
        return dict.fromkeys(sides, joined), writer
    dictionaries = {}
    for lang, is_target in sides:
        given = _given_dictionary(args, is_target)
        threshold, nwords = (args.thresholdtgt, args.nwordstgt) if is_target else (args.thresholdsrc, args.nwordssrc)
        dictionaries[lang, is_target] = load(given) if given else build([plan.train_file(lang)], threshold, nwords)
    return dictionaries, writer


def _dictionary_functions(
    plan: FilePlan, writer: CorpusWriter
) -> tuple[Callable[[str], Dictionary], Callable[[list[str], int, int], Dictionary]]:
    """(read a dictionary, build one from training files); a plugin's task may have its own."""
    from fairseq.data.dictionary import Dictionary
    from fairseq.data.encoders.fit import encoder_misfit
    from fairseq.data.text import tokenize_line

    args, task = plan.args, _plugin_task(plan.args.task)

    def build(files: list[str], threshold: int, nwords: int) -> Dictionary:
        if task is not None and not args.bpe:
            return task.build_dictionary(
                files, workers=args.workers, threshold=threshold, nwords=nwords, padding_factor=args.padding_factor
            )
        dictionary = Dictionary()
        for path in files:
            if args.bpe:
                writer.spool(path, dictionary)
            else:
                Dictionary.add_file_to_dictionary(path, dictionary, tokenize_line, args.workers)
        dictionary.finalize(threshold=threshold, nwords=nwords, padding_factor=args.padding_factor)
        return dictionary

    def load(path: str) -> Dictionary:
        dictionary = task.load_dictionary(path) if task is not None else Dictionary.load(path)
        warning = encoder_misfit(writer.source, dictionary) if args.bpe else None
        if warning:
            logger.warning(f"{path}: {warning}")
        return dictionary

    return load, build


def _plugin_task(name: str | None) -> Any:
    """The class of a task that is neither built in (they all use plain dictionaries) nor the original's default."""
    from fairseq import refusals
    from fairseq.registry import TASKS

    if name is None or name in refusals.TASKS:
        return None
    if name in TASKS and name not in TASKS.registered():
        return None  # built in: no need to import torch
    return TASKS.get(name)


def _binarize(
    plan: FilePlan, writer: CorpusWriter, dictionary: Dictionary, path: str, split: str, lang: str | None
) -> None:
    from fairseq.data.text import describe_lone_returns

    logger.info(f"[{lang}] Dictionary: {len(dictionary)} types")
    name = split + plan.lang_part(lang)
    if plan.args.dataset_impl == "raw":
        shutil.copyfile(path, plan.new_file(name))
        return
    prefix = plan.new_file(name + ".bin").removesuffix(".bin")
    plan.new_file(name + ".idx")
    summary = writer.write(path, prefix, dictionary)
    if split == "train" and summary.num_seq == 0:
        raise DataError(f"the training file {path} is empty: there is nothing to train on")
    if summary.lone_returns:
        logger.warning(describe_lone_returns(path, summary.lone_returns))
    replaced = f", {summary.replaced_percent:.3}% replaced (by {dictionary.unk_word})" if summary.num_tok else ""
    logger.info(f"[{lang}] {path}: {summary.num_seq} sents, {summary.num_tok} tokens{replaced}")
    plan.rows.append((name, path, summary))


def _print_summary(plan: FilePlan, seconds: float) -> None:
    """A table for people, on stdout only: the log keeps the original's lines."""
    if not plan.rows:
        return
    size = sum(os.path.getsize(path) for _, path, _ in plan.rows) / 1e6
    width = max(len("data"), *(len(name) for name, _, _ in plan.rows))
    print(f"{'data':<{width}}  {'lines':>12}  {'tokens':>14}  {'unknown':>8}")
    for name, _, summary in plan.rows:
        unknown = f"{summary.replaced_percent:.2f}%" if summary.num_tok else "-"
        print(f"{name:<{width}}  {summary.num_seq:>12,}  {summary.num_tok:>14,}  {unknown:>8}")
        if summary.num_tok and summary.replaced_percent > 50:
            print(f"warning: the dictionary does not fit {name}; raw text needs --bpe, and the dictionary made for it")
    print(f"{size:,.1f} MB of text in {seconds:.1f} s; dictionary and data are in {plan.args.destdir}")


def cli_main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    run_command("fairseq-preprocess", lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    from fairseq.dataclass.parser import get_preprocessing_parser, parse_args_and_arch
    from fairseq.logging.setup import configure_logging

    args = parse_args_and_arch(get_preprocessing_parser(), input_args=argv)
    configure_logging()
    with ends_when_asked("fairseq-preprocess"):
        main(args)


if __name__ == "__main__":
    cli_main()
