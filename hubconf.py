"""Entrance for ``torch.hub``: every published model by its name, ``bpe`` and ``tokenizer``.

``torch.hub.load("<directory of this file>", "roberta.base", source="local")`` is
``RobertaModel.from_pretrained("roberta.base")``; further keywords are passed on.
"""

import functools

from fairseq.compat.models import BPEHubInterface as bpe  # noqa: F401
from fairseq.compat.models import TokenizerHubInterface as tokenizer  # noqa: F401
from fairseq.models import MODEL_REGISTRY
from fairseq.models.roberta.addresses import PUBLISHED

dependencies = ["numpy", "omegaconf", "torch"]

for _model, _names in PUBLISHED.items():
    for _name in _names:
        globals()[_name] = functools.partial(MODEL_REGISTRY[_model].from_pretrained, _name)
