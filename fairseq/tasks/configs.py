"""Settings of the built-in tasks (free of torch)."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq.dataclass.base import II, MISSING, FairseqDataclass, option

BREAK_MODES = ("none", "complete", "complete_doc", "eos")
SHORTEN_METHODS = ("none", "truncate", "random_crop")


@dataclass(kw_only=True)
class MaskedLMConfig(FairseqDataclass):
    """Masked language modelling on a binarized corpus."""

    data: str = option(
        MISSING,
        "directory of the binarized data; several, separated by a colon, are used in turn, one an epoch",
    )
    sample_break_mode: str = option(
        "none",
        "none: fill each sample with tokens-per-sample tokens, ignoring line ends; complete: with whole lines only; "
        "complete_doc: the same, never across documents (empty lines separate them); eos: one line a sample",
        choices=BREAK_MODES,
    )
    tokens_per_sample: int = option(1024, "most tokens in a sample, the leading <s> included")
    mask_prob: float = option(0.15, "share of the tokens that are predicted; 0: source and target are the same")
    leave_unmasked_prob: float = option(0.1, "share of the predicted tokens that stay as they are in the source")
    random_token_prob: float = option(0.1, "share of the predicted tokens that become random tokens in the source")
    freq_weighted_replacement: bool = option(False, "draw random tokens by their frequency rather than uniformly")
    mask_whole_words: bool = option(False, "mask whole words instead of single tokens (needs --bpe)")
    mask_multiple_length: int = option(1, "tokens (or words) masked in a row")
    mask_stdev: float = option(0.0, "standard deviation of the number masked in a row; 0: constant")
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
