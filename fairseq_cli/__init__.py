"""Old import paths of the commands; the commands themselves are in ``fairseq.cli``."""
