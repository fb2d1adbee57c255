"""Old path of ``fairseq-validate``."""

from fairseq.cli.validate import cli_main, main

__all__ = ["cli_main", "main"]

if __name__ == "__main__":
    cli_main()
