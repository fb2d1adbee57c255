"""Old path of the GPT-2 BPE encoder script; see `fairseq.cli.bpe_encode`."""

from fairseq.cli.bpe_encode import MultiprocessingEncoder, cli_main, main

__all__ = ["MultiprocessingEncoder", "cli_main", "main"]

if __name__ == "__main__":
    cli_main()
