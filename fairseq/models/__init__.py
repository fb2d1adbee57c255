"""Models. Adding one: a class registered by ``register_model`` and functions by ``register_model_architecture``."""

from __future__ import annotations

from fairseq.lazy import exporter

__getattr__, __dir__, __all__ = exporter(
    __name__,
    {
        "ARCH_CONFIG_REGISTRY": "registration",
        "ARCH_MODEL_INV_REGISTRY": "registration",
        "ARCH_MODEL_NAME_REGISTRY": "registration",
        "ARCH_MODEL_REGISTRY": "registration",
        "BaseFairseqModel": "fairseq_model",
        "FairseqEncoder": "fairseq_model",
        "FairseqEncoderModel": "fairseq_model",
        "MODEL_DATACLASS_REGISTRY": "registration",
        "MODEL_REGISTRY": "registration",
        "build_model": "registration",
        "register_model": "registration",
        "register_model_architecture": "architectures",
    },
)
