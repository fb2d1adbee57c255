"""Settings of the built-in tasks (free of torch)."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq.dataclass.base import II, MISSING, FairseqDataclass, follow, option

PAIR_MODES = ("none", "consecutive")
BREAK_MODES = ("none", "complete", "complete_doc", "eos")
SHORTEN_METHODS = ("none", "truncate", "random_crop")


@dataclass(kw_only=True)
class MaskedLMConfig(FairseqDataclass):
    """Masked language modelling on a binarized corpus."""

    data: str = option(
        MISSING,
        "directory of the binarized data; several, separated by a colon, are used in turn, one per epoch",
    )
    sample_break_mode: str = option(
        "none",
        "none: fill each sample with tokens-per-sample tokens, ignoring line ends; complete: with whole lines only; "
        "complete_doc: the same, never across documents (empty lines separate them); eos: one line a sample",
        choices=BREAK_MODES,
    )
    tokens_per_sample: int = option(1024, "most tokens in a sample, the leading <s> included", within="[1, inf)")
    pair_mode: str = option(
        "none",
        "consecutive: a sample is two lines that follow each other, <s> A </s> B </s>, cut to tokens-per-sample; empty lines are "
        "passed over, and sample-break-mode has no meaning then",
        choices=PAIR_MODES,
        new=True,
    )
    token_types: bool | None = option(
        None,
        "tell the model which tokens are of the second sentence of a pair; default: if it has token types",
        action="boolean",
        new=True,
    )
    prepend_bos: bool = option(True, "put <s> in front of every sample", action="boolean", new=True)
    mask_prob: float = option(
        0.15, "fraction of the tokens that are predicted; 0: source and target are the same", within="[0, 1)"
    )
    leave_unmasked_prob: float = option(
        0.1, "fraction of the predicted tokens that stay as they are in the source", within="[0, 1]"
    )
    random_token_prob: float = option(
        0.1, "fraction of the predicted tokens that become random tokens in the source", within="[0, 1]"
    )
    freq_weighted_replacement: bool = option(False, "draw random tokens by their frequency rather than uniformly")
    mask_whole_words: bool = option(False, "mask whole words instead of single tokens (needs --bpe)")
    mask_multiple_length: int = option(1, "tokens (or words) masked in a row", within="[1, inf)")
    mask_stdev: float = option(0.0, "standard deviation of the number masked in a row; 0: constant", within="[0, inf)")
    mask_exact: bool = option(
        False, "predict exactly mask-prob of the tokens of every sample, and split them in exact shares", new=True
    )
    shorten_method: str = option(
        "none",
        "what happens to lines of more than tokens-per-sample tokens before they are put into samples",
        choices=SHORTEN_METHODS,
    )
    shorten_data_split_list: str = option(
        "", 'comma-separated splits that are shortened, e.g. "train,valid"; empty: all'
    )
    seed: int = II("common.seed")
    include_target_tokens: bool = option(False, "also give the target tokens to the model's forward")
    reuse_dataloader: bool = option(
        True,
        "as in the original, the first epoch decides whether batches are shuffled, so that a curriculum never begins to "
        "shuffle; off: it does after its epochs",
        action="boolean",
        new=True,
    )
    shorten_to_fit: bool = option(
        False,
        "shorten lines to tokens-per-sample - 1, so that they fit with <s>; the original leaves one token too many, and "
        "such lines are then skipped",
        new=True,
    )
    omit_mask: bool = option(
        False,
        "leave <mask> out of the dictionary; masked positions carry the id after its last symbol (for zero masking)",
        alias="--omit-mask-and-pad",
    )


@dataclass(kw_only=True)
class MultiLingualMaskedLMConfig(MaskedLMConfig):
    """Masked language modelling on several languages, each in a directory of its own."""

    data: str = option(
        MISSING,
        "directory with dict.txt and a directory of binarized data for each language; several, separated by a colon, are "
        "used in turn, one per epoch",
    )
    sample_break_mode: str = option(
        "complete",
        "as for masked_lm; complete: fill each sample with whole lines only",
        choices=BREAK_MODES,
    )
    tokens_per_sample: int = option(512, "most tokens in a sample, the leading <s> included", within="[1, inf)")
    multilang_sampling_alpha: float = option(
        1.0,
        "exponent on the languages' fractions of the data; below 1 small languages are drawn more often",
        within="[0, inf)",
    )
    languages: str | None = option(
        None, "comma-separated languages (names of directories) to train on; default: all", new=True
    )
    train_subset: str = II("dataset.train_subset")


@dataclass(kw_only=True)
class SentenceTaskConfig(FairseqDataclass):
    """What the tasks on whole sentences have in common."""

    data: str = option(MISSING, "directory with input0, input1, ... and label, each as fairseq-preprocess writes it")
    num_classes: int = option(
        -1, "number of classes (regression: of values; ranking: of choices); must be given", within="[-1, inf)"
    )
    init_token: int | None = option(None, "id put before every example (0: <s>)", within="[0, inf)")
    separator_token: int | None = option(None, "id put before the second sentence (2: </s>)", within="[0, inf)")
    token_types: bool = option(
        False, "tell the model which tokens are of the second sentence (for models with token types)", new=True
    )
    no_shuffle: bool = option(False, "keep the order of the files")
    group_by_length: bool = option(
        False, "make batches of examples of similar length, other ones in each epoch: less padding", new=True
    )
    shorten_method: str = option(
        "none",
        "what happens to examples of more than max-positions tokens (none: they are left out of training)",
        choices=SHORTEN_METHODS,
    )
    shorten_data_split_list: str = option(
        "", 'comma-separated splits that are shortened, e.g. "train,valid"; empty: all'
    )
    max_positions: int = option(512, "longest example in tokens; the model's max-positions follows", within="[1, inf)")
    seed: int = II("common.seed")
    omit_mask: bool = option(
        False,
        "leave <mask> out of the dictionary, as models with zero masking were pretrained",
        alias="--omit-mask-and-pad",
    )


@dataclass(kw_only=True)
class SentencePredictionConfig(SentenceTaskConfig):
    """Classification of, or regression on, sentences and pairs of sentences."""

    add_prev_output_tokens: bool = option(False, "also give the model the tokens rotated right by one")
    regression_target: bool = follow("criterion.regression_target", False)
    classification_head_name: str = follow("criterion.classification_head_name", "sentence_classification_head")
    multi_label: bool = option(
        False, "an example may have several labels, or none (one line, separated by spaces)", new=True
    )


@dataclass(kw_only=True)
class SentenceRankingConfig(SentenceTaskConfig):
    """Choosing among ``num_classes`` candidates, each scored together with the context."""

    max_option_length: int | None = option(
        None, "candidates are cut to this many tokens, init-token included", within="[1, inf)"
    )
    ranking_head_name: str = follow("criterion.ranking_head_name", "sentence_classification_head")


@dataclass(kw_only=True)
class MultipleChoiceConfig(SentenceRankingConfig):
    """As ranking; also reads CommonsenseQA's files (DATA/train.jsonl, DATA/dict.txt), which are encoded with --bpe."""

    context_first: bool = option(
        False, "context before candidate (SWAG) instead of candidate before context (RACE)", new=True
    )


@dataclass(kw_only=True)
class CommonsenseQAConfig(MultipleChoiceConfig):
    """CommonsenseQA: five choices."""

    num_classes: int = option(5, "number of choices", within="[-1, inf)")


@dataclass(kw_only=True)
class TokenTaskConfig(FairseqDataclass):
    """What the two tasks have in common."""

    data: str = option(MISSING, "directory with input0 and label, as fairseq-preprocess-task writes it")
    max_positions: int = option(512, "longest input in tokens; the model's max-positions follows", within="[1, inf)")
    no_shuffle: bool = option(False, "keep the order of the files")
    group_by_length: bool = option(
        False, "make batches of inputs of similar length, other ones in each epoch: less padding"
    )
    predictions: str | None = option(
        None, "write the predictions of every validation to this file; {subset} in it becomes the subset's name"
    )
    seed: int = II("common.seed")
    omit_mask: bool = option(
        False,
        "leave <mask> out of the dictionary, as models with zero masking were pretrained",
        alias="--omit-mask-and-pad",
    )


@dataclass(kw_only=True)
class QuestionAnsweringConfig(TokenTaskConfig):
    """Answers that are spans of a context (SQuAD)."""

    head_name: str = option("question_answering_head", "name of the head")
    window_length: int | None = option(
        None, "tokens of a window <s> question </s> </s> context </s>; default: max-positions", within="[1, inf)"
    )
    doc_stride: int = option(
        128, "pieces of the context from the beginning of one window to that of the next", within="[1, inf)"
    )
    max_query_length: int = option(64, "questions are cut to this many pieces", within="[0, inf)")
    max_answer_length: int = option(30, "longest answer in pieces", within="[1, inf)")
    n_best: int = option(20, "spans kept of a window, and written of a question to FILE.nbest.json", within="[1, inf)")
    allow_no_answer: bool = option(False, "questions may have no answer (SQuAD 2.0)")
    null_score_threshold: float = option(
        0.0,
        "no answer is given when it beats the best span by more than this (sum of two logits)",
        within="(-inf, inf)",
    )


@dataclass(kw_only=True)
class TokenClassificationConfig(TokenTaskConfig):
    """A label for every word (CoNLL columns)."""

    head_name: str = option("token_classification_head", "name of the head")
    entity_scores: bool = option(
        True, "report precision, recall and F1 of whole entities (B-PER, I-PER, O)", action="boolean"
    )
