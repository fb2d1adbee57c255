"""``fairseq-glue``: fine-tune a checkpoint on GLUE's tasks with several seeds, and make a table of the scores."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from fairseq.cli import process
from fairseq.cli.common import INTERRUPTED, add_bpe_options, fail, given_bpe_options, run_command
from fairseq.dataclass.flags import FairseqParser
from fairseq.errors import ConfigError
from fairseq.glue import recipe
from fairseq.registry import BPES

PROGRAM = "fairseq-glue"
TRAINER = (sys.executable, "-m", "fairseq.cli.train_config")
_EXAMPLES = """\
examples:
  fairseq-glue --checkpoint checkpoints/checkpoint_best.pt --data-dir glue_data
  fairseq-glue --checkpoint model.pt --data-dir glue_data --tasks CoLA RTE --recipe electra --seeds 3 --out results
  fairseq-glue --checkpoint model.pt --data-dir glue_data --recipe my.yaml --set batch_size=32 fp16=true

DIR gets table.md, table.png, results.jsonl and a directory for every run. Finished runs are not repeated: give the same
command again to go on where it stopped. Recipes are explained in docs/glue.md.
"""


def get_parser() -> argparse.ArgumentParser:
    """The options; nothing here imports torch."""
    parser = FairseqParser(
        prog=PROGRAM,
        description="Fine-tune a pretrained checkpoint on GLUE's tasks, every task with several seeds, and write a table.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="FILE", help="pretrained checkpoint, or the directory that it is in")
    add("--data-dir", required=True, metavar="DIR", help="GLUE's folders (CoLA, MRPC, ...) with their TSV files")
    add(
        "--tasks",
        nargs="+",
        default=["all"],
        metavar="TASK",
        help="tasks by name, or all: every task that DIR has, WNLI aside [all]",
    )
    add("--recipe", default="roberta", help=f"{', '.join(recipe.names())}, or a YAML file of your own [roberta]")
    add("--seeds", type=_positive, default=5, metavar="N", help="runs of every task, each with its own seed [5]")
    add("--out", default="glue-results", metavar="DIR", help="directory of the results [glue-results]")
    add("--jobs", type=_positive, metavar="N", help="runs at a time [as many as GPUs, else cores and memory allow]")
    add("--predict-test", action="store_true", help="write predictions for the test sets, as the GLUE site takes them")
    add("--dry-run", action="store_true", help="only preprocess, and show what would be run")
    cut = parser.add_argument_group("changing the recipe")
    add = cut.add_argument
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="options of fairseq-train, epochs, ...",
    )
    add("--max-epoch", type=_positive, metavar="N", help="train for at most N epochs")
    add("--max-updates", type=_positive, metavar="N", help="train for at most N updates")
    add("--train-examples", type=_positive, metavar="N", help="train on at most N rows of every task")
    add("--cpu", action="store_true", help="leave the GPUs alone")
    kept = parser.add_argument_group("disk")
    add = kept.add_argument
    add(
        "--keep-checkpoints",
        choices=("none", "best", "all"),
        default="none",
        help="fine-tuned models that stay: none, the best of every task (as --predict-test needs), or all [none]",
    )
    add(
        "--save-optimizer-state",
        action="store_true",
        help="an interrupted run goes on from its last epoch instead of starting anew; checkpoints are thrice as large",
    )
    model = parser.add_argument_group("what the checkpoint does not know")
    add = model.add_argument
    add(
        "--dict", metavar="FILE", help="dict.txt of pretraining [beside the checkpoint, or in the data of its training]"
    )
    add(
        "--bpe", choices=[*BPES.names(), "none"], help="encoder of pretraining [as stored]; none: the symbols are words"
    )
    add("--user-dir", metavar="DIR", help="import this plugin directory first")
    add_bpe_options(parser)
    return parser


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, but is {text!r}")
    return value


def main(args: argparse.Namespace, command: str = PROGRAM) -> None:
    """Do what ``args`` asks for; ``command`` is shown above the table."""
    # Imported here so that --help and mistakes on the command line do not wait for torch.
    from fairseq.dataclass.user_module import import_user_module
    from fairseq.glue.campaign import run
    from fairseq.glue.plan import Limits, Request

    import_user_module(args)
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; give a directory")
    run(
        Request(
            checkpoint=args.checkpoint,
            data_dir=Path(args.data_dir),
            out=out.resolve(),
            trainer=TRAINER,
            tasks=args.tasks,
            recipe=args.recipe,
            seeds=args.seeds,
            given=recipe.parse_settings(args.set),
            limits=Limits(args.max_epoch, args.max_updates),
            train_examples=args.train_examples,
            jobs=args.jobs,
            cores=process.processors(),
            cpu=args.cpu,
            dictionary=args.dict,
            bpe=args.bpe,
            bpe_options=given_bpe_options(args),
            keep=args.keep_checkpoints,
            resumable=args.save_optimizer_state,
            predict_test=args.predict_test,
            dry_run=args.dry_run,
            user_dir=str(Path(args.user_dir).resolve()) if args.user_dir else None,
            command=command,
        )
    )


def cli_main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    words = list(sys.argv[1:] if argv is None else argv)

    def work() -> None:
        args = get_parser().parse_args(words)
        try:
            main(args, shlex.join([PROGRAM, *words]))
        except KeyboardInterrupt:
            fail(PROGRAM, f"interrupted; the same command goes on from what is in {args.out}", INTERRUPTED)

    run_command(PROGRAM, work)


if __name__ == "__main__":
    cli_main()
