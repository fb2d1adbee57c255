"""fairseq: masked language models (RoBERTa and its efficient variants). Importing this package imports nothing heavy."""

from __future__ import annotations

from fairseq.compat import aliases as _aliases

__version__ = "0.13.0"

_aliases.install()
