"""The ``README.md`` of an exported folder: what the model is, what it was trained on and how, how to load it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq.dataclass.state import changed_settings
from fairseq.interop.portable import PortableModel, config_in

_LOADING = """\
```python
from transformers import AutoTokenizer, {cls}

model = {cls}.from_pretrained("{folder}"{trust})
tokenizer = AutoTokenizer.from_pretrained("{folder}"{trust})
```
"""
_SIZES = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "attention heads",
    "intermediate_size": "inner width",
    "vocab_size": "vocabulary",
    "max_position_embeddings": "longest input",
}


def write_card(
    model: PortableModel, settings: Mapping[str, Any], folder: Path, cls: str, has_tokenizer: bool, remote: bool = True
) -> None:
    """``settings`` have the sizes of the model under Transformers' names, ``cls`` is the class that loads the folder."""
    parameters = sum(value.numel() for key, value in model.state["model"].items() if not key.endswith("lm_head.weight"))
    rows = [f"| {shown} | {settings[key]:,} |" for key, shown in _SIZES.items() if settings.get(key)]
    parts = [f"{slot.replace('_', ' ')}: {_variant(settings[slot])}" for slot in _SLOTS if slot in settings]
    trust = ", trust_remote_code=True" if remote else ""
    loading = _LOADING.format(cls=cls, folder=folder.name, trust=trust)
    if not has_tokenizer:
        loading = "\n".join(line for line in loading.splitlines() if "okenizer.from" not in line).replace(
            "AutoTokenizer, ", ""
        )
    text = [
        "---",
        "library_name: transformers",
        "tags:",
        "- fairseq",
        "- masked-lm",
        "---",
        "",
        f"# {folder.name}",
        "",
        f"A masked language model of {parameters:,} parameters, trained with fairseq.",
        "",
        "| | |",
        "|---|---|",
        *rows,
        "",
        *([f"Parts: {'; '.join(parts)}.", ""] if parts else []),
        "## Loading",
        "",
        loading,
        "## Training",
        "",
        *_training(model.state),
        "",
    ]
    (folder / "README.md").write_text("\n".join(text), encoding="utf-8")


_SLOTS = ("token_mixer", "channel_mixer", "positions", "attention_bias", "lm_head")


def _variant(value: Any) -> str:
    return str(value["name"] if isinstance(value, Mapping) else value).replace("_", " ")


def _training(state: Mapping[str, Any]) -> list[str]:
    """Data, progress, metrics and settings, as far as the checkpoint says."""
    config = config_in(state)
    found = [f"- data: `{Path(str(getattr(config.task, 'data', ''))).name or 'not stored'}`"]
    history = state.get("optimizer_history") or []
    if history:
        found.append(f"- updates: {history[-1].get('num_updates', 0):,}")
    extra = state.get("extra_state") or {}
    if isinstance(extra.get("val_loss"), (int, float)):
        found.append(f"- validation loss: {extra['val_loss']:.4g} bits")
    if isinstance(extra.get("best"), (int, float)):
        found.append(f"- best value of the metric that chose checkpoints: {extra['best']:.4g}")
    settings = {key: value for key, value in changed_settings(config).items() if not _is_path(value)}
    words = ["fairseq-hydra-train", "task.data=DATA", *(_setting(key, value) for key, value in settings.items())]
    return [*found, "", "What was set, as a command:", "", "```", " \\\n    ".join(words), "```"]


def _setting(key: str, value: Any) -> str:
    return shlex.quote(f"{key}={value if isinstance(value, str) else json.dumps(value)}")


def _is_path(value: Any) -> bool:
    """Paths of one machine say nothing to others."""
    return isinstance(value, str) and "/" in value
