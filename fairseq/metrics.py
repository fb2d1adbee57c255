"""Old import path of `fairseq.logging.metrics`: the same module under a second name, its state included."""

from __future__ import annotations

import sys

from fairseq.logging import metrics as _home

sys.modules[__name__] = _home
