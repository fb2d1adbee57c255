"""``fairseq-preprocess-task --task conll``: CoNLL columns in, the layout of `conll_layout` out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from fairseq.data.dictionary import Dictionary
from fairseq.data.downstream.conll_columns import Sentence, read_columns
from fairseq.data.downstream.conll_layout import ConllWriter
from fairseq.data.downstream.formats import FORMATS
from fairseq.data.downstream.layout import Job, SplitSummary, Written
from fairseq.data.downstream.reading import first_existing, place
from fairseq.data.downstream.sample import Sample
from fairseq.data.downstream.token_configs import ConllConfig
from fairseq.data.word_pieces import word_pieces
from fairseq.errors import DataError, DataNotFoundError

_ENDINGS = ("txt", "conll", "bio", "iob", "iob2", "tsv")
_NAMES = {"train": ("train", "eng"), "valid": ("dev", "valid", "eng.testa"), "test": ("test", "eng.testb")}


@FORMATS.register("conll")
def write(job: Job) -> Written:
    """``train.txt``, ``dev.txt`` (or ``valid.txt``), ``test.txt``; CoNLL-2003's ``eng.train``, ``eng.testa``, ``eng.testb``."""
    written = Written()
    labels = job.label_dictionary
    for split, path in _files(job.data_dir).items():
        if labels is None:
            labels = _count_labels(job, path)
            if split != "train":
                written.notes.append(f"there is no training file, so labels are numbered by their frequency in {path}")
        written.splits.append(_write_split(job, split, path, labels))
    return written


def _files(directory: Path) -> dict[str, Path]:
    found = {}
    for split, stems in _NAMES.items():
        names = [f"{stem}.{ending}" for stem in stems if stem[:3] != "eng" for ending in _ENDINGS]
        names += [stem if "." in stem else f"{stem}.{split}" for stem in stems if stem[:3] == "eng"]
        path = first_existing(directory, names)
        if path is not None:
            found[split] = path
    if not found:
        raise DataNotFoundError(
            f"{directory} has no files of columns: train.txt, dev.txt, test.txt (or .conll), or eng.train, eng.testa, "
            "eng.testb"
        )
    return found


def _options(job: Job) -> ConllConfig:
    return job.options if isinstance(job.options, ConllConfig) else ConllConfig()


def _read(job: Job, path: Path) -> list[Sentence]:
    options = _options(job)
    return list(read_columns(path, options.word_column, options.label_column))


def _count_labels(job: Job, path: Path) -> Dictionary:
    counts = Counter(label for sentence in _read(job, path) for label in sentence.labels)
    labels = Dictionary()
    for label, count in counts.items():
        labels.add_symbol(label, count)
    labels.finalize(padding_factor=1)
    return labels


def _write_split(job: Job, split: str, path: Path, labels: Dictionary) -> SplitSummary:
    summary = SplitSummary(split, path)
    sample = Sample(path, job.dictionary, job.settings is not None)
    with ConllWriter(job.dest, split, job.dictionary, labels) as writer:
        for sentence in _read(job, path):
            for number, label in enumerate(sentence.labels):
                if label not in labels:
                    known = ", ".join(labels.symbols[labels.nspecial :])
                    raise DataError(
                        f"{place(path, sentence.line + number)}: the label {label!r} is not among those of the training "
                        f"data ({known}); give a label/dict.txt that lists them all with --label-dict"
                    )
            sample.add(" ".join(sentence.words))
            pieces = word_pieces(job.bpe, sentence.words, job.dictionary.unk_word)
            writer.add(sentence.words, pieces, sentence.labels)
            summary.labels.update(sentence.labels)
    sample.check(job.bpe)
    summary.rows, summary.tokens, summary.unknown = writer.sentences, writer.tokens, writer.unknown
    return summary
