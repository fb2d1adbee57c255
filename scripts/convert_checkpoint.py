#!/usr/bin/env python3
"""Convert a pretrained model between the formats of related programs: ``fairseq-convert`` as a script.

python scripts/convert_checkpoint.py --from fairseq-alibi-clap --to fairseq-upstream SRC DST
"""

from __future__ import annotations

import sys

from fairseq.cli.convert import get_parser, main
from fairseq.errors import FairseqError

if __name__ == "__main__":
    try:
        main(get_parser("convert_checkpoint").parse_args())
    except FairseqError as error:
        sys.exit(f"convert_checkpoint: error: {error}")
