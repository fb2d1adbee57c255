"""Where models are: published ones (name -> archive, or a dict with ``path`` and further settings), and in folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHECKPOINTS = ("model.pt", "checkpoint_best.pt", "checkpoint_last.pt")  # of a published model, and of a training

_BASE = "http://dl.fbaipublicfiles.com/fairseq/models"

ROBERTA: dict[str, Any] = {
    name: f"{_BASE}/{name}.tar.gz"
    for name in ("roberta.base", "roberta.large", "roberta.large.mnli", "roberta.large.wsc")
}
XLMR: dict[str, Any] = {
    "xlmr.base": f"{_BASE}/xlmr.base.tar.gz",
    "xlmr.large": f"{_BASE}/xlmr.large.tar.gz",
    "xlmr.xl": f"{_BASE}/xlmr/xlmr.xl.tar.gz",
    "xlmr.xxl": f"{_BASE}/xlmr/xlmr.xxl.tar.gz",
}
CAMEMBERT: dict[str, Any] = {
    **dict.fromkeys(("camembert", "camembert.v0", "camembert-base"), f"{_BASE}/camembert-base.tar.gz"),
    **{
        name: f"{_BASE}/{name}.tar.gz"
        for name in (
            "camembert-large",
            "camembert-base-ccnet",
            "camembert-base-ccnet-4gb",
            "camembert-base-wikipedia-4gb",
            "camembert-base-oscar-4gb",
        )
    },
}
GOTTBERT: dict[str, Any] = {"gottbert-base": "https://dl.gottbert.de/fairseq/models/gottbert-base.tar.gz"}

# Name of the registered model -> its published models; ``hubconf.py`` offers each of them.
PUBLISHED = {"roberta": ROBERTA, "xlmr": XLMR, "camembert": CAMEMBERT, "gottbert": GOTTBERT}


def checkpoint_in(folder: Path) -> Path | None:
    """The model of ``folder``: the first of its checkpoints that is there."""
    return next((folder / name for name in CHECKPOINTS if (folder / name).is_file()), None)
