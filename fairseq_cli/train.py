"""Old path of ``fairseq-train``."""

from fairseq.cli.train import cli_main, main

__all__ = ["cli_main", "main"]

if __name__ == "__main__":
    cli_main()
