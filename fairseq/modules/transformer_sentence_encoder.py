"""Old import path of ``init_bert_params``."""

from __future__ import annotations

from fairseq.modules.initialization import init_bert_params

__all__ = ["init_bert_params"]
