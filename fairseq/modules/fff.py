"""The fast feed-forward channel mixer: of many hidden units a token uses those on one path through each binary tree.

After Belcak and Wattenhofer 2023, arXiv 2311.10770. What is computed, and what a route is, stands in
``fairseq.ops.fff``.

Legend: D depth, P trees, N = P (2^(D+1) - 1) nodes, C_in and C_out channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fairseq.errors import ConfigError
from fairseq.modules.initialization import normal_
from fairseq.modules.slots import EncoderShape
from fairseq.ops.fff import ACTIVATIONS, DEEPEST, fast_feed_forward
from fairseq.registry import CHANNEL_MIXERS


class FastFeedForward(nn.Module):
    """(..., C_in) to (..., C_out) through P trees of depth D, whose nodes are the rows of all three parameters.

    The rows of a tree stand together, breadth first: node j of tree t is row t (2^(D+1) - 1) + j. A module on its own
    begins with the uniform weights of linear maps from C_in and from the nodes on a path; in an encoder they are drawn
    like those of its linear maps.
    """

    row_wise = True

    def __init__(
        self, in_dim: int, out_dim: int | None = None, *, depth: int, num_trees: int = 1, activation: str = "gelu"
    ) -> None:
        super().__init__()
        if not 0 <= depth <= DEEPEST or num_trees < 1:
            raise ConfigError(
                f"fast feed-forward layers need a depth from 0 to {DEEPEST} and at least one tree, but have depth {depth} and "
                f"{num_trees} trees (model.fff_depth, model.fff_trees)"
            )
        if activation not in ACTIVATIONS:
            raise ConfigError(
                f"fast feed-forward layers have the activation {' or '.join(ACTIVATIONS)}, but model.activation_fn is {activation!r}"
            )
        self.depth, self.num_trees, self.activation = depth, num_trees, activation
        out_dim = in_dim if out_dim is None else out_dim
        nodes = num_trees * (2 ** (depth + 1) - 1)
        self.weight_in = nn.Parameter(torch.empty(nodes, in_dim))
        self.bias_in = nn.Parameter(torch.empty(nodes))
        self.weight_out = nn.Parameter(torch.empty(nodes, out_dim))
        self.bias_in.no_decay = True  # type: ignore[attr-defined]
        for table in (self.weight_in, self.bias_in, self.weight_out):
            table.sparse_rows = True  # type: ignore[attr-defined]
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        bound_in = max(self.weight_in.size(1), 1) ** -0.5
        bound_out = (self.num_trees * (self.depth + 1)) ** -0.5
        self.weight_in.uniform_(-bound_in, bound_in)
        self.bias_in.uniform_(-bound_in, bound_in)
        self.weight_out.uniform_(-bound_out, bound_out)

    def draw_weights(self) -> None:
        """As BERT draws linear maps, which a node's two rows are parts of."""
        normal_(self.weight_in)
        normal_(self.weight_out)
        nn.init.zeros_(self.bias_in)

    def forward(self, x: Tensor) -> Tensor:
        return fast_feed_forward(
            x, self.weight_in, self.bias_in, self.weight_out, self.depth, self.num_trees, self.activation
        )

    def extra_repr(self) -> str:
        return f"{self.weight_in.size(1)}, {self.weight_out.size(1)}, depth={self.depth}, num_trees={self.num_trees}"


@CHANNEL_MIXERS.register("fff")
def fff(shape: EncoderShape, *, depth: int, trees: int) -> FastFeedForward:
    if shape.activation_dropout > 0:
        raise ConfigError(
            "model.channel_mixer=fff has no dropout after its activation: set model.activation_dropout (relu_dropout) to 0"
        )
    return FastFeedForward(shape.dim, depth=depth, num_trees=trees, activation=shape.activation)
