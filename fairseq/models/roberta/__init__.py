"""RoBERTa: configuration, presets, model, hub interface."""

from __future__ import annotations

from fairseq.lazy import exporter

# The last three live in fairseq.modules and are exported from here as they always were.
__getattr__, __dir__, __all__ = exporter(
    __name__,
    {
        "CamembertModel": "published",
        "GottbertModel": "published",
        "RobertaConfig": "config",
        "RobertaEncoder": "model",
        "RobertaHubInterface": "hub_interface",
        "RobertaModel": "model",
        "XLMRModel": "published",
        "base_architecture": "presets",
        "roberta_base_architecture": "presets",
        "roberta_large_architecture": "presets",
        "roberta_prenorm_architecture": "presets",
        "xlm_architecture": "presets",
        "RobertaClassificationHead": "fairseq.modules.task_heads",
        "RobertaLMHead": "fairseq.modules.lm_head",
        "init_bert_params": "fairseq.modules.initialization",
    },
)
