"""Train a small BiGS beside a RoBERTa and an ALiBi model of its size, then continue it at four times the length.

    python examples/alibi_clap/bigs_study.py DATA --out DIR --updates 800 --seeds 1 2 3

The first part is that of ``study.py`` with the configurations ``config/bigs_study``: the same updates and, for the same seed,
the same batches and masks; its files, and going on after an interruption, are the same too. The gate of BiGS is
8/3 as wide as the model, so that its layers have as many parameters as attention with a feed-forward part of four times the
width. Then every BiGS goes on with its table of positions repeated, in batches of as many tokens, and held-out text of the greater
length is read by it, by what it was before, and by the ALiBi model, which takes any length. DIR gets ``positions.md`` and
``positions.png`` beside the files of ``study.py``: the loss by position.

Legend: S blocks, T tokens of a block.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

from study import HERE, Run, Study, add_options, checked, common_settings, compare, train

BASELINE, ALIBI, BIGS = "roberta", "alibi", "bigs"
TIMES = 4  # the greater length over the one at first
LAST = "checkpoint_last.pt"


def settings(args: argparse.Namespace, run: Run) -> list[str]:
    warmup = max(1, args.updates // 10)
    width = round(8 * args.width / 3) if run.variant == BIGS else 4 * args.width
    return [
        *common_settings(args, run),
        f"model.encoder_ffn_embed_dim={width}",
        f"lr_scheduler.warmup_updates={warmup}",
        f"lr_scheduler.lr_period_updates={args.updates - warmup}",
        f"lr_scheduler.min_lr={args.lr / 10}",
        f"dataset.max_valid_steps={args.valid_batches}",
        *args.set,
    ]


def continued(args: argparse.Namespace, seed: int) -> argparse.Namespace:
    """``args`` of the run that goes on from the BiGS of ``seed``."""
    start = Run(BIGS, seed).directory(args.out) / "checkpoints" / LAST
    changes = {
        "out": args.out / "longer",
        "tokens_per_sample": TIMES * args.tokens_per_sample,
        "batch_size": max(1, args.batch_size // TIMES),
        "updates": args.longer_updates,
        "set": [*args.set, f"checkpoint.finetune_from_model={start}", "model.extend_positions=tile"],
    }
    return argparse.Namespace(**{**vars(args), **changes})


def held_out(data: Path, length: int, bos: int) -> Any:
    """The validation text in full blocks, (S, T) ids that begin with ``bos`` each."""
    import torch

    from fairseq.data.indexed_dataset import load_indexed_dataset

    lines: Any = load_indexed_dataset(str(data / "valid"))
    text = torch.cat([lines[number].long() for number in range(len(lines))])
    count = len(text) // (length - 1)
    rows = text[: count * (length - 1)].view(count, length - 1)
    return torch.cat([torch.full((count, 1), bos), rows], dim=1)


def loss_by_position(args: argparse.Namespace, folder: Path, length: int, seed: int, bins: int) -> list[float]:
    """Bits a masked token (15 %, drawn with ``seed``) in each of ``bins`` equal parts of blocks of ``length`` tokens."""
    import torch
    from torch.nn.functional import cross_entropy

    from fairseq.models.roberta import RobertaModel

    longer = {"max_positions": length, "extend_positions": "tile"}
    hub = RobertaModel.from_pretrained(str(folder), LAST, str(args.data.resolve()), bpe=None, **longer).eval()
    blocks = held_out(args.data, length, hub.task.source_dictionary.bos())
    masked = torch.rand(blocks.shape, generator=torch.Generator().manual_seed(seed)) < 0.15
    masked[:, 0] = False
    losses, places = [], []
    with torch.no_grad():
        for tokens, mask in zip(blocks.split(16), masked.split(16), strict=True):
            logits, _ = hub.model(tokens.masked_fill(mask, hub.task.mask_idx), masked_tokens=mask)
            losses.append(cross_entropy(logits.float(), tokens[mask], reduction="none"))
            places.append(mask.nonzero()[:, 1] * bins // length)
    part = torch.cat(places)
    total = torch.zeros(bins).index_add(0, part, torch.cat(losses))
    return (total / part.bincount(minlength=bins) / math.log(2)).tolist()


def by_position(args: argparse.Namespace, bins: int) -> dict[str, list[list[float]]]:
    """Name of a model -> a list of losses for each seed."""
    short, length = args.tokens_per_sample, TIMES * args.tokens_per_sample
    found: dict[str, list[list[float]]] = {}
    for seed in args.seeds:
        further = continued(args, seed)
        train(further, Run(BIGS, seed))
        models = {
            f"{ALIBI}, trained at {short}": Run(ALIBI, seed).directory(args.out),
            f"{BIGS}, trained at {short}": Run(BIGS, seed).directory(args.out),
            f"{BIGS}, continued at {length}": Run(BIGS, seed).directory(further.out),
        }
        for name, where in models.items():
            losses = loss_by_position(args, where / "checkpoints", length, seed, bins)
            found.setdefault(name, []).append(losses)
        print(f"loss by position, seed {seed}", flush=True)
    return found


def table(args: argparse.Namespace, found: dict[str, list[list[float]]]) -> str:
    """Markdown: a column for each stretch as long as the inputs were at first; means over the seeds."""
    short = args.tokens_per_sample
    heads = [f"{short * part} to {short * (part + 1) - 1}" for part in range(TIMES)]
    rows = [f"| bits a masked token at positions | {' | '.join(heads)} |", "|---|" + "---:|" * TIMES]
    for name, seeds in found.items():
        size = len(seeds[0]) // TIMES
        means = [statistics.mean(x for seed in seeds for x in seed[size * i : size * (i + 1)]) for i in range(TIMES)]
        rows.append(f"| {name} | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    return "\n".join(rows)


def picture(args: argparse.Namespace, found: dict[str, list[list[float]]], path: Path) -> None:
    """The mean of the seeds, and between the least and the greatest of them; a line where the first length ends."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for name, seeds in found.items():
        values = list(zip(*seeds, strict=True))
        width = TIMES * args.tokens_per_sample / len(values)
        middle = [(number + 0.5) * width for number in range(len(values))]
        (line,) = axes.plot(middle, [statistics.mean(v) for v in values], label=name, marker="o", markersize=3)
        axes.fill_between(middle, [min(v) for v in values], [max(v) for v in values], color=line.get_color(), alpha=0.2)
    axes.axvline(args.tokens_per_sample, color="gray", linestyle="--", linewidth=1)
    axes.set(xlabel="position", ylabel="bits a masked token")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser, HERE / "bigs_study")
    parser.add_argument("--longer-updates", type=int, default=200, help="updates at the greater length")
    parser.add_argument("--valid-batches", type=int, default=60, help="batches of a validation")
    parser.set_defaults(variants=[ALIBI, BIGS], seeds=[1, 2, 3], updates=800, layers=2, width=96, lr=2e-3)
    parser.set_defaults(tokens_per_sample=64, batch_size=8, validations=8)
    args = checked(parser, argv, Study(HERE / "config" / "bigs_study", BASELINE, settings, "bigs_study.py"))
    if args.updates < 2 or args.longer_updates < 2:
        parser.error("--updates and --longer-updates must be at least 2")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    compare(args, argv)
    found = by_position(args, bins=4 * TIMES)
    text = table(args, found)
    (args.out / "positions.md").write_text(f"{text}\n", encoding="utf-8")
    picture(args, found, args.out / "positions.png")
    print(f"\n{text}\n\nwritten: {args.out / 'positions.md'}, {args.out / 'positions.png'}")


if __name__ == "__main__":
    main()
