"""Models of fairseq as models of Transformers, which ``pip install fairseq[hf]`` brings.

``import fairseq.hf`` registers them: ``AutoModel.from_pretrained`` and its kind then take folders that
``fairseq-convert --to hf-auto`` wrote without ``trust_remote_code``.
"""

from __future__ import annotations

import transformers

from fairseq.portable.modeling import (
    AUTO,
    FairseqConfig,
    FairseqForMaskedLM,
    FairseqForQuestionAnswering,
    FairseqForSequenceClassification,
    FairseqForTokenClassification,
    FairseqModel,
)

__all__ = [
    "FairseqConfig",
    "FairseqForMaskedLM",
    "FairseqForQuestionAnswering",
    "FairseqForSequenceClassification",
    "FairseqForTokenClassification",
    "FairseqModel",
]

for _name, _class in AUTO.items():
    if _name == "AutoConfig":
        transformers.AutoConfig.register(FairseqConfig.model_type, FairseqConfig, exist_ok=True)
    else:
        getattr(transformers, _name).register(FairseqConfig, _class, exist_ok=True)
