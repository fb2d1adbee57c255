"""``fairseq-predict``: what a fine-tuned model says about a file of texts, or about a preprocessed split."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fairseq.cli.common import (
    add_bpe_options,
    add_model_options,
    batches,
    given_bpe_options,
    load_hub,
    run_command,
)
from fairseq.cli.process import prepare_to_compute
from fairseq.dataclass.flags import FairseqParser
from fairseq.errors import ConfigError, DataError, DataNotFoundError, FairseqError
from fairseq.file_io import check_outputs, complete_file
from fairseq.models.roberta.addresses import CHECKPOINTS

if TYPE_CHECKING:
    from fairseq.tasks.prediction import Prediction

PROGRAM = "fairseq-predict"
WINDOW = 128  # batches of raw text that are sorted by length together, and written together
_EXAMPLES = """\
examples:
  fairseq-predict --path checkpoints/checkpoint_best.pt --input sentences.txt --output labels.tsv
  fairseq-predict --path checkpoints/checkpoint_best.pt --input dev-v1.1.json --output answers.json
  fairseq-predict --path checkpoints/checkpoint_best.pt --input words.txt --output labels.txt
  fairseq-predict RTE-bin --gen-subset test --path checkpoints/checkpoint_best.pt --format jsonl > predictions.jsonl

Texts: one example a line, a pair of sentences separated by a tab; for choices the context and then every choice.
Answers: the label with its probability; several labels; the number(s) of a regression; or the number of the choice.
Models of question answering read SQuAD's JSON and write their answers as JSON; those of token classification read files
of columns with a word a line and write word and label.
"""


def get_parser() -> argparse.ArgumentParser:
    """The options; those of every BPE are there only when given, so that the checkpoint's own are kept."""
    parser = FairseqParser(
        prog=PROGRAM,
        description="Predict with a fine-tuned model: classes, several labels, numbers, the right one of some choices,"
        " answers to questions, labels of words.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data_bin", nargs="?", metavar="DATA", help="preprocessed directory to predict a split of")
    add_model_options(parser)
    parser.add_argument("--gen-subset", default="test", metavar="SPLIT", help="the split of DATA (%(default)s)")
    parser.add_argument("--input", metavar="FILE", help="texts to predict instead of DATA; - is standard input")
    parser.add_argument("--output", default="-", metavar="FILE", help="where answers go (default: standard output)")
    parser.add_argument("--format", choices=("tsv", "jsonl"), default="tsv", help="form of the answers (%(default)s)")
    parser.add_argument("--head", metavar="NAME", help="head of the model (default: the one it was fine-tuned with)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="examples at a time (%(default)s)")
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="directory with the dictionaries input0/dict.txt and label/dict.txt (default: that of the fine-tuning)",
    )
    parser.add_argument("--no-progress-bar", action="store_true", help="show no bar")
    add_bpe_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """Load the model and write an answer for every example, in their order. Raises FairseqError."""
    if (args.input is None) == (args.data_bin is None):
        raise ConfigError("give either a preprocessed directory DATA or texts with --input (- for standard input)")
    if args.input not in (None, "-") and not Path(args.input).is_file():
        raise DataNotFoundError(f"input file not found: {args.input}")
    check_outputs([args.output], _inputs(args))
    prepare_to_compute()
    hub = _hub(args)
    (_by_task if hasattr(hub.task, "file_examples") else _by_head)(hub, args)


def _inputs(args: argparse.Namespace) -> Iterator[str | Path]:
    """The files that are read."""
    yield from (str(path) for path in given_bpe_options(args).values() if path)
    if args.input:
        yield args.input
    path = Path(args.path)
    yield from (path / name for name in CHECKPOINTS) if path.is_dir() else [path]
    for folder in filter(None, (args.data_bin, args.data)):
        yield from Path(folder).glob("*/*")  # input0/dict.txt and so on; answers may stand beside these folders


class Predictor:
    """Predictions of ``hub`` (a RobertaHubInterface) by its head ``head``, ``batch_size`` examples at a time.

    ``reader`` is the task's. Raises ConfigError when there is no such head, or when it works on tokens.
    """

    def __init__(self, hub: Any, head: str | None = None, batch_size: int = 32) -> None:
        from fairseq.tasks.prediction import Reader

        if batch_size < 1:
            raise ConfigError(f"the batch size must be at least 1, but is {batch_size}")
        self.hub, self._batch_size = hub, batch_size
        self.head = self._choose(head)
        limits = [hub.task.max_positions(), hub.model.max_positions()]
        limit = min((int(limit) for limit in limits if isinstance(limit, int)), default=1 << 30)
        self.reader = Reader(hub.task, self._outputs(), limit)

    def _choose(self, name: str | None) -> str:
        heads = list(self.hub.model.classification_heads)
        cfg = self.hub.task.cfg
        wanted = name or getattr(cfg, "classification_head_name", None) or getattr(cfg, "ranking_head_name", None)
        if wanted in heads:
            return str(wanted)
        if name is None and len(heads) == 1:
            return heads[0]
        if not heads:
            raise ConfigError("the model has no head to predict with: fine-tune it on a task first")
        known = ", ".join(heads)
        if not wanted:
            raise ConfigError(f"the model has several heads: choose one of {known} with --head")
        raise ConfigError(f"the model has no head {wanted}; its heads are {known}")

    def _outputs(self) -> int:
        head = self.hub.model.classification_heads[self.head]
        projection = getattr(head, "out_proj", None)
        if projection is None or not hasattr(head, "dense"):
            raise ConfigError(
                f"the head {self.head} works on single tokens; only heads of whole sentences are supported here"
            )
        return int(projection.out_features)

    def predict_texts(
        self, rows: Sequence[Sequence[str]], done: Callable[[int], Any] | None = None
    ) -> list[Prediction]:
        """Answers to examples of one or two texts each, or of a context and its choices."""
        return self.predict(self.reader.text_columns(rows, self.hub.bpe), done)

    def predict(self, columns: Sequence[Any], done: Callable[[int], Any] | None = None) -> list[Prediction]:
        """Answers to examples given as columns of ids, in their order; ``done(n)`` follows a batch of n."""
        from fairseq.models.inference import head_outputs, length_batches

        # The longest first: what does not fit into memory fails at once.
        batches = length_batches(self.reader.examples(columns), self._batch_size, longest_first=True)
        found: dict[int, Prediction] = {}
        for batch, logits in head_outputs(self.hub.model, batches, self.head):
            found |= dict(zip(batch["id"].tolist(), self.reader.answers(logits), strict=True))
            if done is not None:
                done(len(logits))
        return [found[index] for index in sorted(found)]


def _by_head(hub: Any, args: argparse.Namespace) -> None:
    """Answers of a head on whole sentences, in the order of the examples."""
    from fairseq.tasks.prediction import split_columns

    predictor = Predictor(hub, args.head, args.batch_size)
    reader = predictor.reader
    if args.input not in (None, "-"):
        for _ in _texts(args.input, reader.columns):
            pass  # a mistake on any line ends the command before the first answer
    with _open_output(args.output) as output, _bar(args) as bar:
        writer = Writer(output, args.format, reader.kind)
        if args.data_bin is not None:
            columns = split_columns(args.data_bin, args.gen_subset, reader.dictionary)
            bar.reset(len(columns[0]))
            writer.write(predictor.predict(columns, bar.update))
        else:
            for rows in batches(_texts(args.input, reader.columns), WINDOW * args.batch_size):
                if not writer.count:
                    _check_encoding(args.input, rows, hub)
                texts = [row for row in rows if row]
                answers = iter(predictor.predict_texts(texts, bar.update) if texts else ())
                writer.write(next(answers) if row else None for row in rows)
    if writer.empty:
        print(f"note: {writer.empty} lines without text have an empty answer", file=sys.stderr)
    if reader.shortened:
        print(f"note: {reader.shortened} examples were cut to the length that the model takes", file=sys.stderr)
    _done(args, writer.count)


def _done(args: argparse.Namespace, count: int) -> None:
    if args.output != "-":
        print(f"{args.output}: {count:,} answers", file=sys.stderr)


def _by_task(hub: Any, args: argparse.Namespace) -> None:
    """Questions and labelled words: tasks with files of their own (SQuAD's JSON, columns) decode and write the answers."""
    from fairseq.models.inference import head_outputs, length_batches

    task = hub.task
    if args.input == "-":
        raise ConfigError(f"{type(task).__name__} reads whole files of its own: name one with --input")
    if args.data_bin is not None:
        examples = task.split_examples(args.data_bin, args.gen_subset)
    else:
        examples = task.file_examples(args.input, hub.bpe)
    batches = length_batches(examples, args.batch_size)
    outputs = head_outputs(hub.model, batches, args.head or task.head_name)
    found = [task.decode(examples, batch, logits) for batch, logits in outputs]
    with tempfile.TemporaryDirectory() as scratch:
        output = os.path.join(scratch, "answers") if args.output == "-" else args.output
        count = task.write_predictions(output, examples, found)
        if args.output == "-":
            print(Path(output).read_text(encoding="utf-8"), end="")
    _done(args, count)


def _hub(args: argparse.Namespace) -> Any:
    """The model, with the dictionaries of ``--data``, of its fine-tuning, or, when those are gone, of DATA."""
    if args.data_bin is not None:
        args.bpe = "none"  # nothing to encode: its files need not be there
    try:
        return load_hub(args, beside="input0")
    except DataNotFoundError:
        if args.data is not None or args.data_bin is None or not Path(args.data_bin).is_dir():
            raise
    args.data = args.data_bin
    return load_hub(args)


@contextmanager
def _open_output(path: str) -> Iterator[IO[str]]:
    if path == "-":
        yield sys.stdout
        sys.stdout.flush()
        return
    try:
        with complete_file(path) as handle:
            yield handle
    except OSError as error:
        if isinstance(error, FairseqError):  # a file of the input that is not there
            raise
        raise DataError(f"cannot write {path}: {error.strerror}") from None


def _bar(args: argparse.Namespace) -> Any:
    import tqdm

    # disable=None: only where there is a terminal
    return tqdm.tqdm(disable=True if args.no_progress_bar else None, unit=" examples", file=sys.stderr, leave=False)


def _texts(path: str, allowed: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """The texts of every line, as many as the first one with text has; none for a line without text."""
    from fairseq.finetune.reading import check_text, decode_lines, read_lines

    columns = 0
    shown = Path("standard input" if path == "-" else path)
    for number, line in decode_lines(sys.stdin.buffer, shown) if path == "-" else read_lines(shown):
        if not line.strip():
            yield ()
            continue
        texts = tuple(line.split("\t"))
        if not columns and len(texts) not in allowed:
            wanted = " or ".join(map(str, allowed))
            raise DataError(f"{shown}, line {number} has {len(texts)} texts separated by tabs, but must have {wanted}")
        columns = columns or len(texts)
        if len(texts) != columns:
            raise DataError(
                f"{shown}, line {number} has {len(texts)} texts separated by tabs, but those before have {columns}"
            )
        for text in texts:
            check_text(text, f"{shown}, line {number}")
        yield texts


def _check_encoding(path: str, rows: Sequence[Sequence[str]], hub: Any) -> None:
    """Refuse texts that are ids already, and raw texts without an encoder."""
    from fairseq.finetune.layout import Sample

    shown = Path("standard input" if path == "-" else path)
    sample = Sample(shown, hub.task.source_dictionary, hub.bpe)
    for texts in rows:
        for text in texts:
            sample.add(text)
    sample.check()


class Writer:
    """Answers of one kind as lines: tab-separated with a heading, or JSON."""

    def __init__(self, output: IO[str], form: str, kind: str) -> None:
        self._output, self._json = output, form == "jsonl"
        self.count = 0
        self.empty = 0
        self._has_probability = kind in ("classes", "choices")
        if not self._json:
            output.write("prediction\tprobability\n" if self._has_probability else "prediction\n")

    def write(self, answers: Iterable[Prediction | None]) -> None:
        """Write them; None is the empty answer to an empty text, so that answer n stays that of line n."""
        for answer in answers:
            self._output.write((self._as_json(answer) if self._json else self._as_row(answer)) + "\n")
            self.count += 1
            self.empty += answer is None
        self._output.flush()

    def _as_row(self, answer: Prediction | None) -> str:
        if answer is None:
            return "\t" if self._has_probability else ""
        values = answer.value if isinstance(answer.value, list) else [answer.value]
        text = " ".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in values)
        return f"{text}\t{answer.probability:.6f}" if self._has_probability else text

    def _as_json(self, answer: Prediction | None) -> str:
        if answer is None:
            return json.dumps({"index": self.count, "prediction": None})
        row: dict[str, Any] = {"index": self.count, "prediction": answer.value}
        if self._has_probability:
            row["probability"] = answer.probability
        if answer.probabilities is not None:
            row["probabilities"] = answer.probabilities
        return json.dumps(row, ensure_ascii=False)


def cli_main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    run_command(PROGRAM, lambda: main(get_parser().parse_args(argv)))


if __name__ == "__main__":
    cli_main()
