"""The configuration as the original's flat Namespace, for old code that reads ``args.encoder_embed_dim``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fairseq.dataclass.build import ORDER

_COMPONENTS = {"arch": "model", **{name: name for name in ("task", "criterion", "optimizer", "lr_scheduler", "bpe")}}


class FlatView:
    """A view of ``cfg``: ``arch``, ``task``, ``criterion``, ... are names, every other attribute a key of any section.

    A key of several sections is that of the model, then of the task, as `mask_prob` was. What is set is kept here alone.
    """

    def __init__(self, cfg: Any) -> None:
        object.__setattr__(self, "_cfg", cfg)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            if name in _COMPONENTS:
                node = getattr(self._cfg, _COMPONENTS[name], None)
                return getattr(node, "_name", node)
            for section in self._sections():
                if name in section:
                    return section[name]
        raise AttributeError(f"no section of the configuration has {name!r}")

    def _sections(self) -> Iterator[Any]:
        for name in ("model", "task", *ORDER):
            section = getattr(self._cfg, name, None)
            if hasattr(section, "keys"):
                yield section

    def __contains__(self, name: str) -> bool:
        return hasattr(self, name)

    def __dir__(self) -> list[str]:
        return sorted({*_COMPONENTS, *(str(key) for section in self._sections() for key in section), *vars(self)})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._cfg})"
