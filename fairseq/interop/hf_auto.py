"""Any encoder as a folder for Transformers: safetensors, configuration, tokenizer, and one file with the code of the model.

The code is ``fairseq.portable``, put together; whoever loads the folder with ``trust_remote_code`` needs no fairseq.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fairseq.portable
from fairseq.interop.hf_settings import (
    HEADS,
    from_portable,
    head_settings,
    portable_settings,
    portable_weights,
    state_of,
    stored_settings,
)
from fairseq.interop.hf_tokenizer import write_tokenizer
from fairseq.interop.model_card import write_card
from fairseq.interop.portable import (
    CONFIG,
    PortableModel,
    read_weights,
    reads,
    recognized_config,
    save_json,
    write_weights,
)
from fairseq.registry import FORMATS

logger = logging.getLogger(__name__)

MODELING = "modeling_fairseq"
CLASSES = {  # kind of a head -> what Transformers calls the task
    None: "MaskedLM",
    "classification": "SequenceClassification",
    "token": "TokenClassification",
    "span": "QuestionAnswering",
}


@FORMATS.register("hf-auto")
class HuggingFaceAuto:
    """``config.json``, ``model.safetensors``, ``modeling_fairseq.py``, ``tokenizer.json``, ``README.md``."""

    writes_tokenizer = True

    @staticmethod
    def recognizes(config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == "fairseq_encoder"

    @staticmethod
    @reads("a fairseq encoder")
    def read(folder: Path, special: Mapping[str, int]) -> PortableModel:
        config = recognized_config(folder, HuggingFaceAuto.recognizes, "a fairseq encoder")
        return state_of(config, from_portable(read_weights(folder), config), folder)

    @staticmethod
    def write(model: PortableModel, folder: Path) -> None:
        settings = portable_settings(model.state)
        head = the_head(model.state["model"])
        if head is not None:
            settings["head"] = head_settings(model.state, head)
        kind = settings["head"]["kind"] if head is not None else None
        config = {
            "model_type": "fairseq_encoder",
            "architectures": [f"FairseqFor{CLASSES[kind]}"],
            "auto_map": {
                "AutoConfig": f"{MODELING}.FairseqConfig",
                "AutoModel": f"{MODELING}.FairseqModel",
                **{f"AutoModelFor{task}": f"{MODELING}.FairseqFor{task}" for task in CLASSES.values()},
            },
            "bos_token_id": 0,
            "eos_token_id": 2,
            "tie_word_embeddings": False,
            **settings,
            "fairseq": stored_settings(model.state),
        }
        if kind in ("classification", "token"):
            config["num_labels"] = settings["head"]["classes"]
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(portable_weights(model.state, settings["tied"], head), folder)
        save_json(config, folder / CONFIG)
        (folder / f"{MODELING}.py").write_text(modeling_source(), encoding="utf-8")
        types = settings["type_vocab_size"] > 1
        has_tokenizer = write_tokenizer(
            model, settings["vocab_size"], settings["max_position_embeddings"], folder, types
        )
        write_card(model, settings, folder, f"AutoModelFor{CLASSES[kind]}", has_tokenizer)


def the_head(weights: Mapping[str, Any]) -> str | None:
    """The name of the one task head among ``weights``; of several none is written."""
    names = sorted({key.split(".")[1] for key in weights if key.startswith(HEADS)})
    if len(names) > 1:
        logger.warning("the model has the heads %s; an export has one, so none was written", ", ".join(names))
    return names[0] if len(names) == 1 else None


def modeling_source() -> str:
    """The code of ``fairseq.portable`` as one file."""
    parts = ["from __future__ import annotations\n"]
    folder = Path(fairseq.portable.__file__).parent
    for name in ("mixers", "encoder", "modeling"):
        lines = (folder / f"{name}.py").read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if not line.startswith(("from fairseq.", "from __future__"))]
        parts.append("\n".join(kept).strip() + "\n")
    note = '"""Encoders of fairseq in plain PyTorch, written by ``fairseq-convert --to hf-auto``."""\n'
    return "\n\n".join([note, *parts])
