#!/usr/bin/env python3
"""Old entrance: ``python train.py DATA --arch ...`` is ``fairseq-train DATA --arch ...``."""

from fairseq.cli.train import cli_main

if __name__ == "__main__":
    cli_main()
