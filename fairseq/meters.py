"""Old import path of `fairseq.logging.meters`: the same module under a second name."""

from __future__ import annotations

import sys

from fairseq.logging import meters as _home

sys.modules[__name__] = _home
