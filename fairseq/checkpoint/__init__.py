"""Checkpoints: what is in them, writing them safely, reading old and new ones without executing anything."""

from __future__ import annotations

from fairseq.lazy import exporter

__getattr__, __dir__, __all__ = exporter(
    __name__,
    {
        "CheckpointNotFoundError": "safe_load",
        "CheckpointStore": "store",
        "atomic_save": "atomic",
        "average_checkpoints": "reader",
        "build_state": "schema",
        "checkpoint_paths": "store",
        "load": "safe_load",
        "load_checkpoint_to_cpu": "reader",
        "load_ema_from_checkpoint": "reader",
        "load_pretrained_component_from_model": "reader",
        "read": "reader",
        "save_ema_as_checkpoint": "reader",
        "torch_persistent_save": "reader",
        "upgrade_state": "reader",
        "verify_checkpoint_directory": "store",
    },
)
