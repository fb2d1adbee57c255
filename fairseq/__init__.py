"""fairseq: masked language models (RoBERTa and its efficient variants). Importing this package imports nothing heavy.

Its modules, old paths included, are attributes that are imported when asked for: ``import fairseq; fairseq.utils``.
"""

from __future__ import annotations

from fairseq.compat import aliases as _aliases

__version__ = "0.13.0"

_aliases.install()
__getattr__ = _aliases.submodules(__name__)
