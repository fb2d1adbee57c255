"""The configuration as the original's flat Namespace, for old code that reads ``args.encoder_embed_dim``."""

from __future__ import annotations

import argparse
from typing import Any

from fairseq.dataclass.build import ORDER, as_plain

_COMPONENTS = {"arch": "model", **{name: name for name in ("task", "criterion", "optimizer", "lr_scheduler", "bpe")}}


def flat_namespace(cfg: Any) -> argparse.Namespace:
    """The keys of all sections of ``cfg``, as values of now; ``arch``, ``task``, ``criterion``, ... are names.

    A key of several sections is that of the model, then of the task, then of the first of the others.
    """
    values: dict[str, Any] = {}
    for section in ("model", "task", *ORDER):
        node = getattr(cfg, section, None)
        if hasattr(node, "keys"):
            values = {**as_plain(node, resolve=True), **values}
    names = {key: getattr(cfg, section, None) for key, section in _COMPONENTS.items()}
    values |= {key: getattr(node, "_name", node) for key, node in names.items()}
    return argparse.Namespace(**{key: value for key, value in values.items() if not key.startswith("_")})
