"""Words labelled by a loaded RoBERTa with a token head: ``roberta.tag(words)``.

Legend: N words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from fairseq.data.token_labels_dataset import LooseSentences, TokenLabelsDataset, word_labels
from fairseq.errors import DataError
from fairseq.models.roberta.head_outputs import head_outputs

HEAD = "token_classification_head"


def tags(
    hub: Any, sentences: Sequence[Sequence[str]], batch_size: int = 32, head: str | None = None
) -> list[list[str]]:
    """The label of every word of several sentences.

    Labels are named by the fine-tuning task, or numbered when it has no names. Raises ConfigError when the model has no
    such head, DataError for a sentence without words.
    """
    for number, words in enumerate(sentences):
        if isinstance(words, str) or not words or not all(words):
            raise DataError(f"sentence {number} must be a list of words, none of them empty, but is {words!r:.80}")
    names = getattr(hub.task, "class_names", None)
    source = LooseSentences(sentences, hub.bpe, hub.task.source_dictionary)
    dataset = TokenLabelsDataset(source, hub.task.source_dictionary, hub.model.max_positions())
    found: list[list[str]] = [[""] * len(words) for words in sentences]
    for rows in labels(hub, dataset, batch_size, head):
        for sentence, word, _, label in rows.tolist():
            found[sentence][word] = str(label) if names is None else names[label]
    return found


def labels(hub: Any, dataset: TokenLabelsDataset, batch_size: int = 32, head: str | None = None) -> Iterator[Tensor]:
    """Sentence, word, target and predicted class of every word (N, 4), batch by batch."""
    for sample, logits in head_outputs(hub, dataset, head, HEAD, batch_size):
        yield word_labels(sample, logits)
