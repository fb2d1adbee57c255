"""BiGS: a token mixer of two gated state-space convolutions (Wang et al., Pretraining Without Attention, 2022).

    v = f(V x)    u_f = f(U_f x)    u_b = f(U_b x)
    mix(x) = O (f(G (P_f SSM_f(u_f) * P_b SSM_b(u_b))) * v)

where SSM_f reads the sequence from its beginning and SSM_b from its end (``fairseq.ops.ssm``): position t of the product
knows what is before t and what is after. It has no heads and no attention, and takes the place of the feed-forward part, too.

Legend: B batch, T tokens, C channels, F inner width, N modes, R tokens of a packed batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fairseq.errors import ConfigError
from fairseq.modules.configs import BiGSConfig
from fairseq.modules.feed_forward import Linear, get_activation_fn
from fairseq.modules.slots import EncoderContext, EncoderShape
from fairseq.ops.ssm import SSM, ssm_conv
from fairseq.registry import TOKEN_MIXERS


class StateSpace(nn.Module):
    """The parameters of one direction: A_re (N,), A_im (N,), C (N, 2), D (1,), log_step (1,).

    They are float32 at least, whatever the model is converted to: poles and steps are exponents. Section 5.5 of the
    original's draws: C from N(0, 1/2) in each part, steps log-uniform from 0.01 to 1, D = 1.
    """

    def __init__(self, modes: int, spectrum: str = "hippo") -> None:
        super().__init__()
        self.spectrum = spectrum
        self.A_re = nn.Parameter(torch.empty(modes))
        self.A_im = nn.Parameter(torch.empty(modes))
        self.C = nn.Parameter(torch.empty(modes, 2))
        self.D = nn.Parameter(torch.empty(1))
        self.log_step = nn.Parameter(torch.empty(1))
        self.draw_weights()

    @torch.no_grad()
    def draw_weights(self) -> None:
        self.A_re.fill_(-0.5)
        self.A_im.copy_(initial_frequencies(len(self.A_im), self.spectrum))
        self.C.copy_(torch.empty(self.C.shape).normal_(0.0, 0.5**0.5))
        self.D.fill_(1.0)
        self.log_step.copy_(torch.empty(1).uniform_(math.log(0.01), 0.0))

    def forward(self) -> SSM:
        return SSM(self.A_re, self.A_im, self.C, self.log_step, self.D)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StateSpace:
        def at_least_float32(x: Tensor) -> Tensor:
            moved = fn(x)
            narrowed = x.is_floating_point() and moved.dtype.itemsize < 4
            return x.to(moved.device, torch.float32) if narrowed else moved

        return super()._apply(at_least_float32, recurse)


def initial_frequencies(modes: int, spectrum: str) -> Tensor:
    """Imaginary parts of the first poles, (N,) float64.

    ``hippo``: the eigenvalues of HiPPO-LegS without its normal part (Gu et al., 2022); ``lin``: pi n;
    ``inv``: N / pi (N / (2 n + 1) - 1).
    """
    n = torch.arange(modes, dtype=torch.float64)
    if spectrum == "lin":
        return math.pi * n
    if spectrum == "inv":
        return modes / math.pi * (modes / (2 * n + 1) - 1)
    root = (2 * n + 1).sqrt()
    lower = torch.tril(-0.5 * root[:, None] * root, diagonal=-1)
    return torch.linalg.eigvalsh(torch.complex(torch.zeros_like(lower), lower.T - lower))


class BiGS(nn.Module):
    """x (B, T, C) -> (B, T, C); packed, (1, R, C).

    With ``leak`` padding is read as if it were text, as in the original, whose outputs depend on how much of it a batch has;
    with ``padded_length`` that is always as much as leads to so many tokens.
    """

    packs = True
    selects = True

    def __init__(
        self,
        dim: int,
        inner_dim: int,
        *,
        modes: int = 64,
        spectrum: str = "hippo",
        activation: str = "gelu_accurate",
        leak: bool = False,
        padded_length: int = 0,
        method: str = "auto",
    ) -> None:
        super().__init__()
        self.activation = get_activation_fn(activation)
        self.reads_padding = leak
        self.padded_length = padded_length
        self.depends_on_padding = "padding is read like text, as in the original" if leak and not padded_length else ""
        self.method = method
        self.value_proj = Linear(dim, inner_dim)
        self.forward_proj = Linear(dim, dim)
        self.backward_proj = Linear(dim, dim)
        self.forward_ssm = StateSpace(modes, spectrum)
        self.backward_ssm = StateSpace(modes, spectrum)
        self.forward_out_proj = Linear(dim, dim)
        self.backward_out_proj = Linear(dim, dim)
        self.gate_proj = Linear(dim, inner_dim)
        self.out_proj = Linear(inner_dim, dim)

    def forward(self, x: Tensor, context: EncoderContext) -> Tensor:
        before, after = self._convolve(
            self.activation(self.forward_proj(x)), self.activation(self.backward_proj(x)), context
        )
        # From here on every token is on its own, so only those that are read go on.
        before, after = context.keep(before), context.keep(after)
        value = self.activation(self.value_proj(context.keep(x)))
        gate = self.activation(self.gate_proj(self.forward_out_proj(before) * self.backward_out_proj(after)))
        return self.out_proj(gate * value)

    def _convolve(self, u: Tensor, v: Tensor, context: EncoderContext) -> tuple[Tensor, Tensor]:
        parameters = self.forward_ssm(), self.backward_ssm()
        lengths = context.lengths
        if lengths is None:
            padding = None if self.reads_padding else context.padding
            return ssm_conv(u, v, *parameters, padding, self.method)
        # Zeros between the sequences do what a mask would.
        u, v = (pad_sequence(x[0].split(lengths), batch_first=True) for x in (u, v))
        mixed = ssm_conv(u, v, *parameters, None, self.method)
        before, after = (torch.cat([row[:length] for row, length in zip(y, lengths, strict=True)])[None] for y in mixed)
        return before, after


@TOKEN_MIXERS.register("bigs", dataclass=BiGSConfig)
def bigs(
    shape: EncoderShape,
    attention_bias: Any = None,
    *,
    num_ssm: int = 64,
    spectrum: str = "hippo",
    activation: str = "gelu_accurate",
    padding: str = "masked",
    method: str = "auto",
    ssm_lr_scale: float = 1.0,
    ssm_weight_decay: bool = True,
) -> BiGS:
    if attention_bias is not None:
        raise ConfigError(
            "the token mixer bigs has no attention scores that an attention bias could change: leave it out"
        )
    mixer = BiGS(
        shape.dim,
        shape.ffn_dim,
        modes=num_ssm,
        spectrum=spectrum,
        activation=activation,
        leak=padding != "masked",
        padded_length=shape.max_positions if padding == "full" else 0,
        method=method,
    )
    for parameter in (*mixer.forward_ssm.parameters(), *mixer.backward_ssm.parameters()):
        tagged: Any = parameter
        if ssm_lr_scale != 1.0:
            tagged.lr_scale = ssm_lr_scale
        if not ssm_weight_decay:
            tagged.no_decay = True
    return mixer
