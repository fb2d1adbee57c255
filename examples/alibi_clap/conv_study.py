"""Train small BERTs with composite attention, learned positions and ALiBi side by side, and write a table and a picture.

    python examples/alibi_clap/conv_study.py DATA --out DIR --updates 300 --seeds 1 2 3

All follow the recipe of BERT with convolutions (``config/conv``), shrunk: blocks of text instead of pairs of sentences, and no
dropout, for no run gets through its data. The same updates and, for the same seed, the same batches and masks. Everything
else is as in ``study.py``, whose runs, going on after an interruption and files these are.
"""

from __future__ import annotations

import argparse

from study import HERE, Run, Study, add_options, checked, common_settings, compare

LEARNED, ALIBI, COMPOSITE = "bert_base", "bert_alibi", "bert_conv_base"


def settings(args: argparse.Namespace, run: Run) -> list[str]:
    return [
        *common_settings(args, run),
        "task.pair_mode=none",
        f"model.encoder_ffn_embed_dim={4 * args.width}",
        "model.dropout=0",
        "model.attention_dropout=0",
        f"lr_scheduler.warmup_updates={max(1, args.updates // 10)}",
        *args.set,
    ]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser, HERE / "conv_study")
    parser.add_argument("--variants", nargs="+", default=[ALIBI, COMPOSITE], help="files of config/conv")
    parser.set_defaults(seeds=[1, 2, 3], updates=300, layers=2)
    return checked(parser, argv, Study(HERE / "config" / "conv", LEARNED, settings, "conv_study.py"))


def main(argv: list[str] | None = None) -> None:
    compare(parse(argv), argv)


if __name__ == "__main__":
    main()
