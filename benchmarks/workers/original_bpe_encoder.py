"""The original's encoding step, for its wheel lacks the script: a pool over its own encoder, chunks of 100 lines.

    original_bpe_encoder.py ENCODER_JSON VOCAB_BPE INPUT OUTPUT WORKERS

Runs in the original's environment. Lines lose the whitespace at both ends, and blank ones are kept.
"""

from __future__ import annotations

import sys
from multiprocessing import Pool

from fairseq.data.encoders.gpt2_bpe import get_encoder

bpe = None


def start(encoder_json: str, vocab_bpe: str) -> None:
    global bpe
    bpe = get_encoder(encoder_json, vocab_bpe)


def encode(line: str) -> str:
    return " ".join(map(str, bpe.encode(line.strip())))


if __name__ == "__main__":
    encoder_json, vocab_bpe, source, target, workers = sys.argv[1:]
    with (
        open(source, encoding="utf-8") as lines,
        open(target, "w", encoding="utf-8") as out,
        Pool(int(workers), initializer=start, initargs=(encoder_json, vocab_bpe)) as pool,
    ):
        for encoded in pool.imap(encode, lines, 100):
            print(encoded, file=out)
