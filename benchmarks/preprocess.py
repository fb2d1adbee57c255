"""Raw text to a data-bin: `fairseq-preprocess --bpe gpt2` beside the original's two steps.

    python benchmarks/preprocess.py [--text FILE] [--encoder-json FILE --vocab-bpe FILE] [--workers 2] [--rounds 5]

Two tasks: the dictionary is counted from the text, and it is given (`--srcdict`). The original encodes the text to a file
of ids with a pool of workers, then binarizes that file; ours does it in one command. Whole processes are measured, start-up
included, taking turns, and the files of both sides must be equal byte for byte. Without `--text` the quickstart's books,
repeated, are the text; without `--encoder-json` a byte-level BPE is trained on them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import common

ENCODER = Path(__file__).resolve().parent / "workers" / "original_bpe_encoder.py"
BOOKS = common.REPOSITORY / "examples" / "quickstart" / "books"
ORIGINAL = "import sys; sys.argv[0] = 'fairseq-preprocess'; from fairseq_cli.preprocess import cli_main; cli_main()"
OURS = "import sys; sys.argv[0] = 'fairseq-preprocess'; from fairseq.cli.preprocess import cli_main; cli_main()"


def prepare_text(cache: Path, megabytes: float) -> Path:
    """The quickstart's books, a paragraph a line, repeated to about `megabytes`."""
    path = cache / "data" / f"books-{megabytes:g}.txt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = [
            " ".join(block.split())
            for book in sorted(BOOKS.glob("*.txt"))
            for block in book.read_text(encoding="utf-8").split("\n\n")
        ]
        text = "\n".join(blocks) + "\n\n"
        path.write_text(text * max(1, round(megabytes * 1e6 / len(text.encode()))), encoding="utf-8")
    return path


def prepare_bpe(cache: Path, text: Path, vocabulary: int = 8000) -> tuple[Path, Path]:
    """`encoder.json` and `vocab.bpe` of a byte-level BPE trained on the first megabyte of `text`."""
    folder = cache / "data" / f"bpe-{common.digest(text.name, vocabulary)}"
    if not (folder / "vocab.bpe").exists():
        from tokenizers import ByteLevelBPETokenizer

        folder.mkdir(parents=True, exist_ok=True)
        bpe = ByteLevelBPETokenizer()
        with open(text, encoding="utf-8") as handle:
            bpe.train_from_iterator([handle.read(1_000_000)], vocab_size=vocabulary, show_progress=False)
        (folder / "encoder.json").write_text(json.dumps(bpe.get_vocab()))
        bpe.save_model(str(folder))
        (folder / "merges.txt").rename(folder / "vocab.bpe")
    return folder / "encoder.json", folder / "vocab.bpe"


def run_original(options: argparse.Namespace, python: Path, target: Path, *dictionary: str | Path) -> list[float]:
    """Seconds and processor seconds of both steps."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    env = common.environment(options.threads)
    env.pop("PYTHONPATH", None)
    ids = target / "text.bpe"
    command = [python, ENCODER, options.encoder_json, options.vocab_bpe, options.text, ids, options.workers]
    encode = common.run_measured(command, env=env, cwd=target)
    flags = ["--only-source", "--trainpref", ids, "--destdir", target / "data-bin", "--workers", options.workers]
    binarize = common.run_measured([python, "-c", ORIGINAL, *flags, *dictionary], env=env, cwd=target)
    return [
        encode.wall + binarize.wall,
        encode.cpu + binarize.cpu,
        max(encode.peak_mib, binarize.peak_mib),
        encode.wall,
        binarize.wall,
    ]


def run_ours(options: argparse.Namespace, target: Path, *dictionary: str | Path) -> list[float]:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    env = common.environment(options.threads, {"PYTHONPATH": str(common.REPOSITORY)})
    flags = ["--only-source", "--trainpref", options.text, "--destdir", target / "data-bin"]
    bpe = ["--bpe", "gpt2", "--gpt2-encoder-json", options.encoder_json, "--gpt2-vocab-bpe", options.vocab_bpe]
    command = [sys.executable, "-c", OURS, *flags, *bpe, "--workers", options.workers, *dictionary]
    done = common.run_measured(command, env=env, cwd=target)
    return [done.wall, done.cpu, done.peak_mib]


def compare_files(one: Path, other: Path) -> list[str]:
    """Names of the files of a data-bin; SystemExit when two of them differ."""
    names = ["dict.txt", "train.bin", "train.idx"]
    for name in names:
        if (one / "data-bin" / name).read_bytes() != (other / "data-bin" / name).read_bytes():
            raise SystemExit(f"{name} of the two sides differ: {one / 'data-bin'} and {other / 'data-bin'}")
    return names


def main() -> None:
    parser = common.benchmark_parser("Preprocessing beside the original.")
    parser.add_argument("--text", type=Path, help="raw text, a paragraph a line (default: the quickstart's books)")
    parser.add_argument("--megabytes", type=float, default=20.0, help="how far the books are repeated")
    parser.add_argument("--encoder-json", type=Path, help="encoder.json of a GPT-2 BPE (default: one is trained)")
    parser.add_argument("--vocab-bpe", type=Path, help="vocab.bpe of the same BPE")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of either side")
    options = parser.parse_args()
    options.cache = options.cache.resolve()
    options.text = (options.text or prepare_text(options.cache, options.megabytes)).resolve()
    if options.encoder_json is None:
        options.encoder_json, options.vocab_bpe = prepare_bpe(options.cache, options.text)
    options.encoder_json, options.vocab_bpe = options.encoder_json.resolve(), options.vocab_bpe.resolve()
    python = common.original_python(options.cache)

    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / name for name in ("original", "ours", "original-dict", "ours-dict")}
        # The first round makes the dictionary that the other task is given.
        run_ours(options, Path(scratch) / "first")
        given = ("--srcdict", Path(scratch) / "first" / "data-bin" / "dict.txt")
        results = common.interleave(
            {
                "original": partial(run_original, options, python, folders["original"]),
                "ours": partial(run_ours, options, folders["ours"]),
                "original-dict": partial(run_original, options, python, folders["original-dict"], *given),
                "ours-dict": partial(run_ours, options, folders["ours-dict"], *given),
            },
            options.rounds,
        )
        compare_files(folders["original"], folders["ours"])
        names = compare_files(folders["original-dict"], folders["ours-dict"])
    report(options, results, names)


def report(options: argparse.Namespace, results: dict[str, list[list[float]]], names: list[str]) -> None:
    size = options.text.stat().st_size / 1e6
    print(f"# {common.machine()}")
    print(
        f"# {size:.1f} MB of text, {options.workers} workers; {', '.join(names)} are equal byte for byte on both sides"
    )
    rows = []
    for task, suffix in (("dictionary counted", ""), ("dictionary given", "-dict")):
        base = common.median([run[0] for run in results["original" + suffix]])
        for who in ("original", "ours"):
            runs = results[who + suffix]
            wall = common.median([run[0] for run in runs])
            rows.append(
                {
                    "task": task,
                    "who": who,
                    "seconds": wall,
                    "range": common.spread([run[0] for run in runs]),
                    "processor s": common.median([run[1] for run in runs]),
                    "MB/s": size / wall,
                    "peak MiB": common.median([run[2] for run in runs]),
                    "times faster": base / wall,
                }
            )
    common.print_table(rows, "Raw text to data-bin")
    steps = [common.median([run[i] for run in results["original"]]) for i in (3, 4)]
    print(f"\nThe original's steps: encoding {steps[0]:.1f} s, binarizing {steps[1]:.1f} s.")
    common.write_json(options.json, {"megabytes": size, "workers": options.workers, "rows": rows})


if __name__ == "__main__":
    main()
