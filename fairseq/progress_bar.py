"""Old import path of `fairseq.logging.progress_bar`: the same module under a second name."""

from __future__ import annotations

import sys

from fairseq.logging import progress_bar as _home

sys.modules[__name__] = _home
