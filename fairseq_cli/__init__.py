"""Old import paths of the commands; the commands themselves are in ``fairseq.cli``."""

import fairseq  # noqa: F401  (answers the paths of commands that are out of scope)
