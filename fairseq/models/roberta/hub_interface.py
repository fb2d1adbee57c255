"""A loaded RoBERTa for people: text in, features, predictions and filled masks out.

Legend: B batch, T tokens, C channels, L layers, V vocabulary.
"""

from __future__ import annotations

import argparse
import functools
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fairseq.data.batching import collate_tokens
from fairseq.data.encoders import build_bpe
from fairseq.data.encoders.fit import Unknowns, encoder_misfit
from fairseq.data.wrappers import ListDataset
from fairseq.dataclass.flat import flat_namespace
from fairseq.errors import ConfigError, DataError, NonFiniteError, OutOfScopeError
from fairseq.finetune.sentences import input_dataset
from fairseq.finetune.spans import Answer
from fairseq.models.inference import evaluation_mode, head_outputs, in_order, length_batches, run_batches
from fairseq.models.roberta import alignment_utils, inference
from fairseq.overrides import accepts, overridden, supports
from fairseq.refusals import HERE

logger = logging.getLogger(__name__)

MASK = "<mask>"
FROM_CONFIGURATION = object()


class Filled(NamedTuple):
    """One candidate for a mask: the text with it filled in, its probability, and the candidate's own text."""

    text: str
    probability: float
    token: str


def _knows_heads(model: Any) -> bool:
    """Whether ``model`` applies a head by its name; a plugin's own ``forward`` may not."""
    return accepts(model.forward, "classification_head_name")


def _separates_features(model: Any) -> bool:
    """Whether logits are known to be the output layer of the features; not where a plugin has a ``forward`` of its own."""
    return supports(model, "takes_targets", "forward") and supports(model.encoder, "takes_targets", "forward")


class RobertaHubInterface(nn.Module):
    """A model with its task (dictionary) and BPE; ``cuda()``, ``half()`` and ``eval()`` work as on any module.

    Without a BPE (``bpe=None``) texts are dictionary symbols separated by spaces.
    """

    _float_tensor: Tensor

    def __init__(self, cfg: Any, task: Any, model: Any, bpe: Any = FROM_CONFIGURATION) -> None:
        super().__init__()
        self.cfg = cfg
        self.task = task
        self.model = model
        self.bpe = build_bpe(getattr(cfg, "bpe", None) if bpe is FROM_CONFIGURATION else bpe)
        self._unknowns = Unknowns()
        dictionary = getattr(task, "source_dictionary", None)
        warning = None if dictionary is None else encoder_misfit(self.bpe, dictionary)
        if warning:
            logger.warning(warning)
            self._unknowns.told = True
        self.register_buffer("_float_tensor", torch.zeros(1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self._float_tensor.device

    @functools.cached_property
    def args(self) -> argparse.Namespace:
        """The configuration, flat, as converters of the original's checkpoints and old plugins read it."""
        return flat_namespace(self.cfg)

    # Text and ids

    def encode(self, sentence: str, *addl_sentences: str, no_separator: bool = False) -> Tensor:
        """Ids (T,) of ``<s> a </s>``, or of ``<s> a </s> </s> b </s>`` (one ``</s>`` between with ``no_separator``)."""
        if not all(isinstance(text, str) for text in (sentence, *addl_sentences)):
            raise DataError(
                "encode takes one text, or the texts of one pair as encode(a, b); for a list of texts use "
                "[encode(text) for text in texts]"
            )
        text = f"<s> {self._pieces(sentence)} </s>"
        for other in addl_sentences:
            text += ("" if no_separator else " </s>") + f" {self._pieces(other)} </s>"
        return self._lookup(text)

    def decode(self, tokens: Tensor) -> str | list[str]:
        """The text of ids (T,); a list of texts when two adjacent ``</s>`` separate several."""
        if tokens.dim() != 1:
            raise DataError(f"decode takes ids of one sentence, shape (T,), but the shape is {tuple(tokens.shape)}")
        dictionary = self.task.source_dictionary
        ids = tokens.tolist()
        if ids and ids[0] == dictionary.bos():
            ids = ids[1:]
        parts: list[list[int]] = [[]]
        for position, symbol in enumerate(ids):
            if symbol == dictionary.eos() and position and ids[position - 1] == dictionary.eos():
                parts.append([])
            elif symbol != dictionary.eos():
                parts[-1].append(symbol)
        texts = [self._text(dictionary.string(torch.tensor(part, dtype=torch.long))) for part in parts]
        return texts[0] if len(texts) == 1 else texts

    def _pieces(self, text: str) -> str:
        return text if self.bpe is None else self.bpe.encode(text)

    def _text(self, pieces: str) -> str:
        return pieces if self.bpe is None else self.bpe.decode(pieces)

    def _lookup(self, pieces: str) -> Tensor:
        dictionary = self.task.source_dictionary
        ids = dictionary.encode_line(pieces, append_eos=False, add_if_not_exist=False).long()
        special = int((ids < dictionary.nspecial).sum())
        unknown = int((ids == dictionary.unk()).sum())
        warning = self._unknowns.add(len(ids) - special + unknown, unknown)
        if warning:
            logger.warning(warning)
        return ids

    # Features and heads

    def extract_features(
        self, tokens: Tensor, return_all_hiddens: bool = False, token_type_ids: Tensor | None = None
    ) -> Tensor | list[Tensor]:
        """Features (B, T, C) of ids (T,) or (B, T), or L + 1 of them. Keeps the mode and gradients as they are.

        ``token_type_ids`` are of the shape of ``tokens``; None: all zero, for models that have types.
        """
        types = self._types(token_type_ids)
        tokens = tokens.unsqueeze(0) if tokens.dim() == 1 else tokens
        self._check_length(tokens.size(-1))
        features, extra = self.model(
            tokens.to(self.device), features_only=True, return_all_hiddens=return_all_hiddens, **types
        )
        if return_all_hiddens:
            return [state.transpose(0, 1) for state in extra["inner_states"]]  # (T, B, C) -> (B, T, C)
        return features

    def extract_features_aligned_to_words(self, sentence: str, return_all_hiddens: bool = False) -> Any:
        """Features per word: a spaCy ``Doc`` with vectors if spaCy is installed, else a list of ``AlignedWord``.

        Both begin with ``<s>`` and end with ``</s>``. All hiddens give vectors (L + 1, C) instead of (C,). A word is the sum
        of its pieces; one that shares a piece with others gets an equal part of it.
        """
        words, finish = alignment_utils.split_words(sentence)
        alignment = alignment_utils.align_sentence(self.bpe, sentence, words)
        ids = self.encode(sentence)
        features = self.extract_features(ids, return_all_hiddens=return_all_hiddens)
        layers = [layer.squeeze(0) for layer in features] if return_all_hiddens else [features.squeeze(0)]  # type: ignore[union-attr]
        aligned = [alignment_utils.align_features_to_words(self, layer, alignment) for layer in layers]
        return finish(torch.stack(aligned, dim=1) if return_all_hiddens else aligned[0])

    def register_classification_head(
        self, name: str, num_classes: int | None = None, embedding_size: int | None = None, **kwargs: Any
    ) -> None:
        """Add the head ``name`` where the model is; ``embedding_size`` has never meant anything."""
        self.model.register_classification_head(name, num_classes=num_classes, **kwargs)

    def _types(self, token_type_ids: Tensor | Sequence[Tensor] | None) -> dict[str, Tensor]:
        """The model's argument for ``token_type_ids`` (T,), (B, T) or B times (T,), where they are given."""
        if token_type_ids is None:
            return {}
        if not torch.is_tensor(token_type_ids):
            token_type_ids = collate_tokens(list(token_type_ids), pad_idx=0)
        types = token_type_ids.unsqueeze(0) if token_type_ids.dim() == 1 else token_type_ids
        return {"token_type_ids": types.to(self.device)}

    def predict(
        self,
        head: str,
        tokens: Tensor | Sequence[Tensor],
        return_logits: bool = False,
        token_type_ids: Tensor | Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Log-probabilities over the last dimension of the head's output, or the output itself (for regression).

        ``tokens`` are ids (T,), (B, T) padded on the right, or a list of B sequences (T,). Sentence heads give (B, classes),
        span and token heads (B, T, classes). ``token_type_ids`` come in the form of ``tokens``. Keeps the mode and
        gradients as they are.
        """
        if not torch.is_tensor(tokens):
            tokens = collate_tokens(list(tokens), pad_idx=self.task.source_dictionary.pad())
        tokens = tokens.unsqueeze(0) if tokens.dim() == 1 else tokens
        self._check_length(tokens.size(-1))
        logits = self._head_output(head, tokens, token_type_ids)
        return logits if return_logits else torch.log_softmax(logits, dim=-1)

    def _head_output(self, head: str, tokens: Tensor, token_type_ids: Tensor | Sequence[Tensor] | None) -> Tensor:
        if overridden(self, RobertaHubInterface, "extract_features") or not _knows_heads(self.model):
            given: dict[str, Any] = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            module, tokens = self.model.classification_heads[head], tokens.to(self.device)
            masks = {"padding_mask": tokens.eq(self.task.source_dictionary.pad())}
            masks = masks if accepts(module.forward, "padding_mask") else {}
            return module(self.extract_features(tokens, **given), **masks)
        return self.model(tokens.to(self.device), classification_head_name=head, **self._types(token_type_ids))[0]

    def predict_sentences(
        self,
        head: str,
        sentences: Sequence[str | Sequence[str]],
        return_logits: bool = False,
        batch_size: int = 32,
    ) -> Tensor:
        """`predict` (N, classes) of texts, or of pairs of texts, in evaluation mode, ``batch_size`` of like length at a time."""
        if not sentences:
            raise DataError("no sentences are given to predict")
        rows = [self.encode(text) if isinstance(text, str) else self.encode(*text) for text in sentences]
        for row in rows:
            self._check_length(row.numel())
        tokens = ListDataset(rows, np.array([row.numel() for row in rows]))
        dataset = input_dataset({"net_input": tokens}, self.task.source_dictionary, tokens.sizes)
        logits = in_order(head_outputs(self.model, length_batches(dataset, batch_size), head))
        return logits if return_logits else torch.log_softmax(logits, dim=-1)

    def answer(self, question: str, context: str, n_best: int | None = None) -> Answer | list[Answer]:
        """The answer in ``context``, or a list of the ``n_best``; see `fairseq.models.roberta.inference.answers`."""
        found = inference.answers(self, [(question, context)], n_best or 1)[0]
        return found[0] if n_best is None else found

    def tag(self, words: str | Sequence[str]) -> list[tuple[str, str]]:
        """(word, label) of the words of a sentence (a text is split at whitespace)."""
        words = words.split() if isinstance(words, str) else list(words)
        return list(zip(words, inference.tags(self, [words])[0], strict=True))

    def disambiguate_pronoun(self, sentence: str) -> Any:
        """What the task makes of ``sentence``, if it is a plugin's that can do so."""
        disambiguate = getattr(self.task, "disambiguate_pronoun", None)
        if disambiguate is not None:
            with evaluation_mode(self.model):
                return disambiguate(self.model, sentence, use_cuda=self.device.type == "cuda")
        raise OutOfScopeError(f"disambiguate_pronoun needs the Winograd task, which is out of scope: {HERE}")

    def _check_length(self, tokens: int) -> None:
        encoder = getattr(self.model.encoder, "sentence_encoder", None)
        # Without an embedding of positions nothing in an encoder is as long as the longest input.
        limit = None if getattr(encoder, "embed_positions", encoder) is None else self.model.max_positions()
        if limit is not None and tokens > limit:
            raise DataError(f"the input has {tokens} tokens, more than the {limit} the model takes; shorten it")

    # Masks

    def fill_mask(self, masked_input: str | Sequence[str], topk: int = 5) -> list[Any]:
        """The ``topk`` best symbols for each ``<mask>`` (or ``[MASK]``, for models with BERT's word pieces), best first.

        Each is (filled text, probability, symbol's text).

        One text with one mask gives one list of candidates; with several masks, a list of such lists, each with that
        mask alone filled in; a sequence of texts (run as one batch) gives a list of results. The beginning, end and
        padding symbols are left out; probabilities are those of the softmax over the whole vocabulary. Deviations from
        the original: exactly ``topk`` entries with their own probabilities, and no failure on unusual symbols.
        """
        texts = [masked_input] if isinstance(masked_input, str) else list(masked_input)
        if topk < 1:
            raise ConfigError(f"topk must be at least 1, but is {topk} instead")
        if not texts:
            return []
        rows = [self._encode_masked(text) for text in texts]
        results = []
        found = iter(self._candidates(rows, topk))
        for text in texts:
            parts = text.split(self._mask_in(text))
            filled = [self._filled(parts, number, next(found), self._mask_in(text)) for number in range(len(parts) - 1)]
            results.append(filled[0] if len(filled) == 1 else filled)
        return results[0] if isinstance(masked_input, str) else results

    def _mask_in(self, text: str) -> str:
        """How ``text`` spells masks: ``<mask>``, or as the BPE does."""
        own = getattr(self.bpe, "mask", MASK)
        return own if own in text else MASK

    def _encode_masked(self, text: str) -> Tensor:
        """Ids (T,) with the task's mask id, which need not be in the dictionary, for every ``<mask>``."""
        mask = self._mask_in(text)
        if mask not in text:
            raise DataError(f"no {MASK} to fill in {text!r}; write {MASK} where a word is wanted")
        mask_idx = getattr(self.task, "mask_idx", None)
        if mask_idx is None:
            raise ConfigError(f"the task {type(self.task).__name__} of this checkpoint has no mask symbol to fill in")
        dictionary = self.task.source_dictionary
        parts = [self._lookup(self._pieces(part.rstrip())) for part in text.split(mask)]
        ids = [torch.tensor([dictionary.bos()])]
        for number, part in enumerate(parts):
            ids += [part] if number == 0 else [torch.tensor([mask_idx]), part]
        row = torch.cat([*ids, torch.tensor([dictionary.eos()])])
        self._check_length(row.numel())
        return row

    def _candidates(self, rows: list[Tensor], topk: int) -> list[list[tuple[int, float]]]:
        """(id, probability) of the ``topk`` best for every mask of every row, in reading order."""
        dictionary = self.task.source_dictionary
        batch = {"src_tokens": collate_tokens(rows, pad_idx=dictionary.pad())}
        [(_, logits)] = run_batches(self.model, [batch], self._mask_logits)
        probabilities = torch.softmax(logits.float(), dim=-1)
        if not torch.isfinite(probabilities).all():
            raise NonFiniteError("the probabilities at <mask> are NaN: the model's outputs are not finite numbers")
        hidden = [dictionary.bos(), dictionary.eos(), dictionary.pad()]
        allowed = probabilities.clone()
        allowed[:, hidden] = -1.0
        values, ids = allowed.topk(min(topk, allowed.size(-1) - len(hidden)), dim=-1)
        return [
            list(zip(row_ids, row_values, strict=True))
            for row_ids, row_values in zip(ids.tolist(), values.tolist(), strict=True)
        ]

    def _mask_logits(self, batch: dict[str, Any]) -> Tensor:
        """Logits (N, V) at every mask of a batch, by way of the features: a model that masks its own input does not then."""
        tokens = batch["src_tokens"]
        masked = tokens.eq(self.task.mask_idx)
        if not _separates_features(self.model):
            return self.model(tokens, features_only=False, return_all_hiddens=False)[0][masked]
        features, _ = self.model(tokens, features_only=True)
        return self.model.encoder.output_layer(features, masked_tokens=masked)

    def _filled(
        self, parts: list[str], number: int, candidates: list[tuple[int, float]], mask: str = MASK
    ) -> list[Filled]:
        """The candidates for mask ``number`` of the text that the masks split into ``parts``."""
        before = mask.join(parts[: number + 1])
        after = mask.join(parts[number + 1 :])
        # A BPE that writes the space before a word as part of it brings its own.
        spaced = self.bpe is not None and any(part.endswith(" ") for part in parts[:-1]) and before.endswith(" ")
        apart = spaced and getattr(self.bpe, "word_pieces", False)
        results = []
        for symbol_id, probability in candidates:
            token = self._symbol_text(self.task.source_dictionary[symbol_id])
            keeps = not spaced or (apart and not token.startswith("##"))
            text = (before if keeps else before[:-1]) + (token.removeprefix("##") if apart else token) + after
            results.append(Filled(text, probability, token))
        return results

    def _symbol_text(self, symbol: str) -> str:
        if self.bpe is None:
            return symbol
        try:
            token = self.bpe.decode(symbol)
        except (ValueError, TypeError, KeyError, IndexError):
            return symbol  # <unk>, madeupword0000 and the like are not pieces of the BPE
        return f" {token}" if symbol.startswith("\u2581") else token


__all__ = ["Filled", "RobertaHubInterface"]
