"""Stand-ins for the sequence-to-sequence base classes: importable and derivable, refused when one is made."""

from __future__ import annotations

from typing import Any

from fairseq.errors import OutOfScopeError
from fairseq.models.fairseq_model import BaseFairseqModel
from fairseq.scope import HERE


class _OutOfScope(BaseFairseqModel):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kind = next(base.__name__ for base in type(self).__mro__ if base.__module__ == __name__)
        raise OutOfScopeError(
            f"{type(self).__name__} is a {kind}, which belongs to sequence-to-sequence modelling or generation and is "
            f"out of scope: {HERE}; encoders derive from FairseqEncoderModel"
        )


class FairseqEncoderDecoderModel(_OutOfScope):
    pass


class FairseqLanguageModel(_OutOfScope):
    pass


class FairseqMultiModel(_OutOfScope):
    pass


class FairseqDecoder(_OutOfScope):
    pass


class FairseqIncrementalDecoder(FairseqDecoder):
    pass
