"""How exactly kernels in Triton multiply numbers of float32."""

from __future__ import annotations

import torch


def precision() -> str:
    """Exactly (``ieee``), unless torch's own products may be made in TensorFloat-32 (``tf32``) too."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
