"""Feature extractors as folders of sentence-transformers: the encoder of ``hf-auto``, a pooling, perhaps a normalization."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fairseq.errors import ConfigError
from fairseq.interop.portable import PortableModel, load_json, save_json
from fairseq.registry import FORMATS

_MODULES = "sentence_transformers.models"


@FORMATS.register("sentence-transformers")
class SentenceTransformers:
    """What ``hf-auto`` writes, ``modules.json`` and the settings of each module; written only."""

    writes_tokenizer = True

    @staticmethod
    def read(folder: Path, special: Mapping[str, int]) -> PortableModel:
        raise ConfigError("sentence-transformers is only written: read such a folder as hf-auto, hf-roberta or hf-bert")

    @staticmethod
    def write(model: PortableModel, folder: Path) -> None:
        FORMATS.get("hf-auto").write(model, folder)
        settings, pooling = load_json(folder / "config.json"), model.sentence["pooling"]
        modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
        modules += [("2_Normalize", "Normalize")] if model.sentence["normalize"] else []
        described = [
            {"idx": number, "name": str(number), "path": path, "type": f"{_MODULES}.{kind}"}
            for number, (path, kind) in enumerate(modules)
        ]
        (folder / "1_Pooling").mkdir(exist_ok=True)
        save_json(described, folder / "modules.json")
        save_json(
            {
                "word_embedding_dimension": settings["hidden_size"],
                "pooling_mode_cls_token": pooling == "first",
                "pooling_mode_mean_tokens": pooling == "mean",
            },
            folder / "1_Pooling" / "config.json",
        )
        longest = settings["max_position_embeddings"] or None
        save_json({"max_seq_length": longest, "do_lower_case": False}, folder / "sentence_bert_config.json")
