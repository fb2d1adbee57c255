"""Small parts that plugins of the original build their layers from, under their old names and signatures.

Legend: B batch, T tokens, C channels, V vocabulary, N rows.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fairseq.errors import OutOfScopeError
from fairseq.refusals import HERE

DEFAULT_MAX_SOURCE_POSITIONS = 1024
DEFAULT_MAX_TARGET_POSITIONS = 1024
DEFAULT_MIN_PARAMS_TO_WRAP = int(1e8)

logger = logging.getLogger(__name__)


class FairseqDropout(nn.Module):
    """Dropout with a name, which may be kept at inference (``retain_dropout``).

    It is functional: with ``p`` of a plain ``nn.Dropout`` it draws the same numbers.
    """

    def __init__(self, p: float, module_name: str | None = None) -> None:
        super().__init__()
        self.p = p
        self.module_name = module_name
        self.apply_during_inference = False

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        if self.p <= 0 or not (self.training or self.apply_during_inference):
            return x
        return F.dropout(x, p=self.p, training=True, inplace=inplace)

    def make_generation_fast_(
        self, name: str, retain_dropout: bool = False, retain_dropout_modules: list[str] | None = None, **kwargs: Any
    ) -> None:
        """Keep dropout in evaluation mode if ``retain_dropout``, for all modules or those that are named."""
        if not retain_dropout:
            return
        if retain_dropout_modules is not None and self.module_name is None:
            logger.warning("cannot enable dropout during inference for module %s: it has no module_name", name)
        elif retain_dropout_modules is None or self.module_name in retain_dropout_modules:
            self.apply_during_inference = True


class LayerDropModuleList(nn.ModuleList):
    """Layers of which each is left out of an iteration in training with probability ``p``."""

    def __init__(self, p: float, modules: Iterable[nn.Module] | None = None) -> None:
        super().__init__(modules)
        self.p = p

    def __iter__(self) -> Iterator[nn.Module]:
        draws = torch.empty(len(self)).uniform_()
        for number, layer in enumerate(super().__iter__()):
            if not self.training or draws[number] > self.p:
                yield layer


def quant_noise(module: nn.Module, p: float, block_size: int) -> nn.Module:
    """``module`` itself: noise for later quantization (``p`` above 0) is out of scope."""
    if p > 0:
        raise OutOfScopeError(
            f"quant_noise with p={p} belongs to the quantization of models, which is out of scope: {HERE}; set it to 0"
        )
    return module


def checkpoint_wrapper(m: nn.Module, offload_to_cpu: bool = False) -> nn.Module:
    """``m``, whose activations are computed again in the backward pass; its arguments may wait on the CPU."""
    forward = m.forward

    def recomputed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        if not offload_to_cpu:
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)
        with torch.autograd.graph.save_on_cpu():
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    m.forward = recomputed
    return m


def cross_entropy(logits: Tensor, target: Tensor, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """Loss of ``logits`` (N, V) in float32."""
    lprobs = F.log_softmax(logits, dim=-1, dtype=torch.float32)
    return F.nll_loss(lprobs, target, ignore_index=ignore_index, reduction=reduction)


def label_smoothed_nll_loss(
    lprobs: Tensor, target: Tensor, epsilon: float, ignore_index: int | None = None, reduce: bool = True
) -> tuple[Tensor, Tensor]:
    """(Smoothed loss, loss) of ``lprobs`` (..., V), summed unless ``reduce`` is off.

    The target keeps 1 - epsilon of the weight; each of the others gets epsilon / (V - 1).
    """
    target = target if target.dim() == lprobs.dim() else target.unsqueeze(-1)
    nll_loss = -lprobs.gather(dim=-1, index=target)
    smooth_loss = -lprobs.sum(dim=-1, keepdim=True)
    if ignore_index is not None:
        ignored = target.eq(ignore_index)
        nll_loss, smooth_loss = nll_loss.masked_fill(ignored, 0.0), smooth_loss.masked_fill(ignored, 0.0)
    else:
        nll_loss, smooth_loss = nll_loss.squeeze(-1), smooth_loss.squeeze(-1)
    if reduce:
        nll_loss, smooth_loss = nll_loss.sum(), smooth_loss.sum()
    share = epsilon / (lprobs.size(-1) - 1)
    return (1.0 - epsilon - share) * nll_loss + share * smooth_loss, nll_loss


class GradMultiply(torch.autograd.Function):
    """``GradMultiply.apply(x, scale)``: x, whose gradient is multiplied by ``scale``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad * ctx.scale, None


class Fp32LayerNorm(nn.LayerNorm):
    """Layer norm in float32, in the type of its input again."""

    def forward(self, input: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.float()
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps).type_as(input)


class Fp32GroupNorm(nn.GroupNorm):
    """Group norm in float32, in the type of its input again."""

    def forward(self, input: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.float()
        bias = None if self.bias is None else self.bias.float()
        return F.group_norm(input.float(), self.num_groups, weight, bias, self.eps).type_as(input)


class Fp32InstanceNorm(nn.InstanceNorm1d):
    """Instance norm in float32; with ``transpose_last`` for (B, T, C)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.transpose_last = bool(kwargs.pop("transpose_last", False))
        super().__init__(*args, **kwargs)

    def forward(self, input: Tensor) -> Tensor:
        x = input.transpose(1, 2) if self.transpose_last else input
        x = super().forward(x.float())
        return (x.transpose(1, 2) if self.transpose_last else x).type_as(input)


class Fp32BatchNorm(nn.Module):
    """Batch norm over (B, C, T) in float32, in the type of its input again."""

    def __init__(self, sync: bool = False, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.bn = (nn.SyncBatchNorm if sync and torch.distributed.is_initialized() else nn.BatchNorm1d)(*args, **kwargs)

    def forward(self, input: Tensor) -> Tensor:
        return self.bn.float()(input.float()).type_as(input)


class SamePad(nn.Module):
    """Cuts what an even ``kernel_size`` (or a causal one) has too many at the end of (B, C, T)."""

    def __init__(self, kernel_size: int, causal: bool = False) -> None:
        super().__init__()
        self.remove = kernel_size - 1 if causal else int(kernel_size % 2 == 0)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : x.size(2) - self.remove]


class SamePad2d(nn.Module):
    """The same in two dimensions, for (B, C, H, W)."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.remove = int(kernel_size % 2 == 0)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : x.size(2) - self.remove, : x.size(3) - self.remove]


class TransposeLast(nn.Module):
    """Swaps the last two dimensions, after a step that may be deconstructed (``deconstruct_idx``)."""

    def __init__(self, deconstruct_idx: int | None = None, tranpose_dim: int = -2) -> None:
        super().__init__()
        self.deconstruct_idx = deconstruct_idx
        self.tranpose_dim = tranpose_dim

    def forward(self, x: Any) -> Tensor:
        x = x if self.deconstruct_idx is None else x[self.deconstruct_idx]
        return x.transpose(self.tranpose_dim, -1)


def Embedding(num_embeddings: int, embedding_dim: int, padding_idx: int) -> nn.Embedding:
    """An embedding from N(0, 1 / C), zero at ``padding_idx``."""
    embedding = nn.Embedding(num_embeddings, embedding_dim, padding_idx=padding_idx)
    nn.init.normal_(embedding.weight, mean=0, std=embedding_dim**-0.5)
    nn.init.constant_(embedding.weight[padding_idx], 0)
    return embedding


def xavier_linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """A linear map, drawn Xavier-uniform, without a bias at first."""
    linear = nn.Linear(in_features, out_features, bias)
    nn.init.xavier_uniform_(linear.weight)
    if bias:
        nn.init.constant_(linear.bias, 0.0)
    return linear
