"""fairseq: masked language models (RoBERTa and its efficient variants). Importing this package imports nothing else."""

from __future__ import annotations

__version__ = "0.13.0"
