"""Old entrance: ``fairseq.cli.hydra_train``."""

from fairseq.cli.hydra_train import cli_main

if __name__ == "__main__":
    cli_main()
