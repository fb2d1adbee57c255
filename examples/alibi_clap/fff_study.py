"""Train a small fast feed-forward model beside its dense counterpart of as many neurons, and write a table and a picture.

    python examples/alibi_clap/fff_study.py DATA --out DIR --updates 600 --seeds 1 2 3

Both follow the recipe of UltraFastBERT (``config/fff``), shrunk: the same updates and, for the same seed, the same batches
and masks. Everything else is as in ``study.py``, whose runs, going on after an interruption and files these are.
"""

from __future__ import annotations

import argparse

from study import HERE, Run, Study, add_options, checked, common_settings, compare

DENSE, FAST = "crammed_bert_4095", "ultrafastbert_1x11"


def settings(args: argparse.Namespace, run: Run) -> list[str]:
    size = {
        DENSE: f"model.encoder_ffn_embed_dim={2 ** (args.depth + 1) - 1}",
        FAST: f"model.fff_depth={args.depth}",
    }
    return [
        *common_settings(args, run),
        "common.amp=false",
        "optimization.batch_ramp_updates=0",
        size[run.variant],
        *args.set,
    ]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser, HERE / "fff_study")
    parser.add_argument("--depth", type=int, default=9, help="of the trees: 2^(depth + 1) - 1 neurons a layer")
    parser.set_defaults(variants=[DENSE, FAST], seeds=[1, 2, 3], updates=600, layers=2, lr=3e-3)
    return checked(parser, argv, Study(HERE / "config" / "fff", DENSE, settings, "fff_study.py"))


def main(argv: list[str] | None = None) -> None:
    compare(parse(argv), argv)


if __name__ == "__main__":
    main()
