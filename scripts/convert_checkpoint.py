#!/usr/bin/env python3
"""Convert a pretrained model between the formats of related programs: ``fairseq-convert`` as a script.

python scripts/convert_checkpoint.py --from fairseq-alibi-clap --to fairseq-upstream SRC DST
"""

from __future__ import annotations

from fairseq.cli.common import run_command
from fairseq.cli.convert import get_parser, main

if __name__ == "__main__":
    run_command("convert_checkpoint", lambda: main(get_parser("convert_checkpoint").parse_args()))
