"""How convolutional attention is spelt: the original's strings, read strictly, and what they mean. Free of torch.

    "qk_convfixed_convq_convk 8"          an attention kernel and its reach
    "convolution_depth_mixed_no_act 5"    a projection and its reach

What a string means is a `Kernel` or a `Projection`; options with names of their own then change one thing of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fairseq.errors import ConfigError

KERNEL_GRAMMAR = (
    "an attention kernel is spelt qk (or dot_product) for plain attention, convbert, or words out of qk, convfixed, convq, "
    "convk and convolution (or convolution_scaled), joined by _, and a reach of at least 1, as in 'qk_convfixed_convq_convk 8'"
)
PROJECTION_GRAMMAR = (
    "a projection is spelt linear, none (queries and keys only), or convolution[_depth][_mixed][_no_act] REACH GROUPS, as in "
    "'convolution_mixed 3 1'; depth needs no GROUPS, and only depth has an activation that no_act leaves out"
)
DEFAULT_KERNEL = "qk_convfixed_convq_convk 8"
CONVBERT_REACH = 4


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """What attention is made of: ``content`` are products of queries and keys, ``fixed``, ``query`` and ``key`` tables of
    numbers by relative position, ``depthwise`` a convolution of the values (none, plain, scaled), ``convbert`` dynamic
    convolutions in half of the heads, made at the position of the key or of the query. All reach ``reach`` tokens each way.
    """

    content: bool = True
    fixed: bool = False
    query: bool = False
    key: bool = False
    depthwise: str = "none"
    convbert: str = "none"
    reach: int | None = None

    @property
    def has_tables(self) -> bool:
        return self.fixed or self.query or self.key


@dataclass(frozen=True, kw_only=True)
class Projection:
    """``kind`` is linear, none, convolution or depthwise (a depthwise convolution and a linear map); ``mixed``: one half of
    the heads is linear; ``activation``: one follows the depthwise convolution."""

    kind: str = "linear"
    mixed: bool = False
    activation: bool = True
    reach: int | None = None
    groups: int = 1

    @property
    def convolves(self) -> bool:
        return self.kind in ("convolution", "depthwise")


LIGHTWEIGHT = ("convfixed", "convq", "convk")


def parse_kernel(text: str) -> Kernel:
    """The kernel that ``text`` spells. Raises ConfigError, which shows the grammar."""
    name, *numbers = text.split() or [""]
    words = name.replace("dot_product", "qk").replace("convolution_scaled", "convolution+scaled").split("_")
    if words == ["convbert"] and not numbers:
        return Kernel(content=True, convbert="key", reach=CONVBERT_REACH)
    known = {"qk", *LIGHTWEIGHT, "convolution", "convolution+scaled"}
    wrong = next((word for word in words if word not in known or words.count(word) > 1), None)
    if wrong is not None or {"convolution", "convolution+scaled"} <= set(words):
        what = f"{(wrong or name).replace('+', '_')!r} is not known, twice there, or does not stand alone"
        raise _bad(text, what, KERNEL_GRAMMAR)
    convolves = words != ["qk"]
    if len(numbers) != convolves or not all(map(_is_count, numbers)):
        raise _bad(text, "it needs one number, its reach" if convolves else "it takes no number", KERNEL_GRAMMAR)
    fixed, query, key = (word in words for word in LIGHTWEIGHT)
    depthwise = "scaled" if "convolution+scaled" in words else "plain" if "convolution" in words else "none"
    return Kernel(
        content="qk" in words or not (fixed or query or key),
        fixed=fixed,
        query=query,
        key=key,
        depthwise=depthwise,
        reach=int(numbers[0]) if numbers else None,
    )


def parse_projection(text: str) -> Projection:
    """The projection that ``text`` spells, kinds alone included. Raises ConfigError, which shows the grammar."""
    name, *numbers = text.split() or [""]
    if not numbers and name in ("linear", "feedforward", "none", "convolution", "depthwise"):
        return Projection(kind="linear" if name == "feedforward" else name)
    words = name.replace("no_act", "no+act").split("_")
    parts = words[1:]
    wrong = next((w for w in parts if w not in ("depth", "mixed", "no+act") or parts.count(w) > 1), None)
    depth = "depth" in parts
    if words[0] != "convolution" or wrong is not None or ("no+act" in parts and not depth):
        raise _bad(
            text, f"{(wrong or name).replace('+', '_')!r} is not known, or has no meaning there", PROJECTION_GRAMMAR
        )
    if len(numbers) not in ((1, 2) if depth else (2,)) or not all(map(_is_count, numbers)):
        raise _bad(
            text, f"it needs {'its reach' if depth else 'two numbers, its reach and groups'}", PROJECTION_GRAMMAR
        )
    return Projection(
        kind="depthwise" if depth else "convolution",
        mixed="mixed" in parts,
        activation="no+act" not in parts,
        reach=int(numbers[0]),
        groups=1 if depth else int(numbers[1]),
    )


def spell_kernel(kernel: Kernel) -> str | None:
    """The string that means ``kernel``; None if there is none."""
    if kernel.convbert != "none":
        return "convbert" if kernel == parse_kernel("convbert") else None
    tables = [word for word, there in zip(LIGHTWEIGHT, (kernel.fixed, kernel.query, kernel.key), strict=True) if there]
    words = [*(["qk"] if kernel.content else []), *tables]
    if kernel.depthwise != "none":
        words.append("convolution_scaled" if kernel.depthwise == "scaled" else "convolution")
    return "_".join(words) + ("" if words == ["qk"] else f" {kernel.reach}")


def spell_projection(projection: Projection) -> str:
    """The string that means ``projection``."""
    if not projection.convolves:
        return projection.kind
    depth = projection.kind == "depthwise"
    words = ["convolution", *(["depth"] if depth else []), *(["mixed"] if projection.mixed else [])]
    words += ["no_act"] if depth and not projection.activation else []
    return f"{'_'.join(words)} {projection.reach} {1 if depth else projection.groups}"


@dataclass(frozen=True)
class Parts:
    """All that the options of convolutional attention say; without a ``head_dim`` heads share the encoder's width."""

    kernel: Kernel
    query_key: Projection
    value: Projection
    head_dim: int | None = None


def read_options(
    *,
    kernel: str = DEFAULT_KERNEL,
    query_key_projection: str = "linear",
    value_projection: str = "linear",
    head_dim: int | None = None,
    **changes: Any,
) -> Parts:
    """What the options of ``fairseq.modules.configs.ConvAttentionConfig`` mean; ``changes``: all but the strings.

    Raises ConfigError for what cannot be.
    """

    def chosen(prefix: str, names: tuple[str, ...]) -> dict[str, Any]:
        found = {name: changes.pop(prefix + name, None) for name in names}
        return {name: value for name, value in found.items() if value is not None}

    def projection(what: str, text: str) -> Projection:
        fields = ("mixed", "activation", "reach", "groups")
        return check_projection(what, replace(parse_projection(text), **chosen(f"{what}_", fields)))

    query_key, value = projection("query_key", query_key_projection), projection("value", value_projection)
    fields = ("content", "fixed", "query", "key", "depthwise", "convbert", "reach")
    made = check_kernel(replace(parse_kernel(kernel), **chosen("", fields)))
    if changes:
        raise TypeError(f"unknown options {', '.join(changes)}")
    if value.kind == "none":
        raise ConfigError("model.conv_attention_value_projection cannot be none: only queries and keys can do without")
    if head_dim is not None and head_dim < 1:
        raise ConfigError(f"model.conv_attention_head_dim must be at least 1, but is {head_dim}")
    if made.convbert != "none" and (value.kind != "linear" or query_key.kind != "linear"):
        raise ConfigError(
            "model.conv_attention_kernel=convbert has projections of its own: leave out "
            "model.conv_attention_value_projection and model.conv_attention_query_key_projection"
        )
    return Parts(made, query_key, value, head_dim)


def check_kernel(kernel: Kernel) -> Kernel:
    """Raise ConfigError for a kernel that cannot be."""
    convolves = kernel.has_tables or kernel.depthwise != "none" or kernel.convbert != "none"
    if convolves and (kernel.reach is None or kernel.reach < 1):
        raise ConfigError(f"model.conv_attention_reach must be at least 1, but is {kernel.reach}: {KERNEL_GRAMMAR}")
    if kernel.convbert != "none" and (kernel.has_tables or kernel.depthwise != "none" or not kernel.content):
        raise ConfigError(f"model.conv_attention_kernel: convbert goes with no other term; {KERNEL_GRAMMAR}")
    if not kernel.content and not kernel.has_tables:
        raise ConfigError(
            "model.conv_attention_content=false leaves nothing to attend by: choose at least one of the tables "
            f"(conv_attention_fixed, conv_attention_query, conv_attention_key); {KERNEL_GRAMMAR}"
        )
    return kernel


def check_projection(what: str, projection: Projection) -> Projection:
    """Raise ConfigError for a projection of the options ``model.conv_attention_<what>_...`` that cannot be."""
    if not projection.convolves:
        if projection.mixed or projection.reach is not None:
            raise ConfigError(
                f"model.conv_attention_{what}_projection={projection.kind} has no convolution whose reach or heads could be "
                f"chosen: {PROJECTION_GRAMMAR}"
            )
        return projection
    for name in ("reach", "groups"):
        value = getattr(projection, name)
        if value is None or value < 1:
            raise ConfigError(
                f"model.conv_attention_{what}_{name} must be at least 1, but is {value}: {PROJECTION_GRAMMAR}"
            )
    return projection


def _is_count(text: str) -> bool:
    return text.isdecimal() and int(text) >= 1


def _bad(text: str, why: str, grammar: str) -> ConfigError:
    return ConfigError(f"{text!r} cannot be read: {why}; {grammar}")
