"""Models as graphs that run without this project: ONNX and ``torch.export``, with any batch and length.

The graph is that of ``fairseq.portable``, which has no operators of its own. Every export is compared with it before it is
written; where onnxruntime is not installed that check of ONNX is left out, with a word.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fairseq.errors import CheckpointError, ConfigError
from fairseq.interop.hf_auto import the_head
from fairseq.interop.hf_settings import head_settings, portable_settings, portable_weights
from fairseq.interop.portable import PortableModel
from fairseq.portable.encoder import Encoder, LMHead, TaskHead

logger = logging.getLogger(__name__)

OPSET = 18
TOLERANCE = 1e-3  # of float32 outputs, which are of the order of 1 to 30; a wrong graph errs by more
CHECKED = ((2, 7), (3, 70))  # batch, tokens


class Graph(nn.Module):
    """Ids (B, T) and a mask (B, T), 0 at padding, to ``output``: logits (B, T, V), features (B, T, C), or those of the head."""

    def __init__(self, model: PortableModel, output: str) -> None:
        super().__init__()
        settings, state = portable_settings(model.state), model.state
        name = the_head(state["model"]) if output == "head" else None
        if output == "head" and name is None:
            raise ConfigError("the model has no task head, or several: export its logits or features")
        config = argparse.Namespace(**settings)
        self.output, self.types = output, settings["type_vocab_size"] > 1
        self.encoder = Encoder(config)
        self.lm_head = LMHead(config) if output == "logits" else None
        self.classifier = TaskHead(config, head_settings(state, name)) if name is not None else None
        weights = portable_weights(state, settings["tied"], name)
        wanted = tuple(f"{child}." for child, _ in self.named_children())
        self.load_state_dict({key: value.float() for key, value in weights.items() if key.startswith(wanted)})
        self.vocabulary = settings["vocab_size"]
        self.longest = settings["max_position_embeddings"]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        x = self.encoder(input_ids, attention_mask, token_type_ids)[-1]
        if self.lm_head is not None:
            return self.lm_head(x, self.encoder.embed_tokens.weight)
        return x if self.classifier is None else self.classifier(x, attention_mask == 0)

    def inputs(self, batch: int, tokens: int) -> dict[str, Tensor]:
        """Random ones, whose last row ends in padding."""
        tokens = min(tokens, self.longest or tokens)
        generator = torch.Generator().manual_seed(tokens)
        found = {"input_ids": torch.randint(4, self.vocabulary, (batch, tokens), generator=generator)}
        found["attention_mask"] = torch.ones(batch, tokens, dtype=torch.int64)
        if tokens > 1:
            found["attention_mask"][-1, tokens - tokens // 3 - 1 :] = 0
        if self.types:
            found["token_type_ids"] = (torch.arange(tokens) > tokens // 2).long().expand(batch, tokens).contiguous()
        return found


def export(model: PortableModel, kind: str, path: Path, output: str = "logits") -> float | None:
    """Write ``model`` as ``kind`` to ``path``; the largest difference from the eager model, None where it was not looked for.

    Raises CheckpointError, and leaves ``path`` as it was, where the graph is not that of the model.
    """
    graph = Graph(model, output).eval()
    program = _program(graph)
    write: Callable[..., Callable[..., Tensor] | None] = {"onnx": _onnx, "torch-export": _loaded_program}[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as scratch:
        run = write(program, graph, Path(scratch) / path.name)
        error = None if run is None else check_graph(graph, run, path)
        for file in Path(scratch).iterdir():  # the largest graphs have a second one
            os.replace(file, path.parent / file.name)
    return error


def _program(graph: Graph) -> Any:
    """The model as an exported program with a dynamic batch and length."""
    example = graph.inputs(2, 70)
    batch = torch.export.Dim("batch", min=1)
    tokens = torch.export.Dim("tokens", min=1, **({"max": graph.longest} if graph.longest else {}))
    shapes = {name: {0: batch, 1: tokens} for name in example}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(graph, (), example, dynamic_shapes=shapes, strict=False)


def _loaded_program(program: Any, graph: Graph, path: Path) -> Callable[..., Tensor]:
    torch.export.save(program, path)
    return torch.export.load(path).module()


def _onnx(program: Any, graph: Graph, path: Path) -> Callable[..., Tensor] | None:
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise ConfigError("ONNX is written with onnx and onnxscript: pip install fairseq[onnx]") from None
    names = list(graph.inputs(1, 2))
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells which other packages it does not find
        made = torch.onnx.export(
            program, input_names=names, output_names=[graph.output], opset_version=OPSET, dynamo=True, verbose=False
        )
    assert made is not None
    made.save(str(path))
    try:
        import onnxruntime
    except ImportError:
        logger.warning("onnxruntime is not installed, so %s was not compared with the model", path)
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(**inputs: Tensor) -> Tensor:
        values = {name: value.numpy() for name, value in inputs.items()}
        return torch.from_numpy(np.asarray(session.run(None, values)[0]))

    return run


def check_graph(graph: Graph, run: Callable[..., Tensor], path: Path) -> float:
    """The largest difference at tokens that are not padding. Raises CheckpointError where it is no rounding error."""
    differences = []
    for batch, tokens in CHECKED:
        inputs = graph.inputs(batch, tokens)
        with torch.no_grad():
            wanted, found = graph(**inputs), run(**inputs)
        if wanted.shape != found.shape:
            raise CheckpointError(f"{path} gives {tuple(found.shape)} where the model gives {tuple(wanted.shape)}")
        if wanted.dim() == 3:
            kept = inputs["attention_mask"].bool()
            wanted, found = wanted[kept], found[kept]
        differences.append((wanted - found).abs().max())
    worst = float(torch.stack(differences).max())  # NaN if there is one
    if not worst < TOLERANCE:
        raise CheckpointError(f"{path} differs from the model by {worst:.2g}: do not use it")
    return worst
