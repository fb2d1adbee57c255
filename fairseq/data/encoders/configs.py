"""Settings of the subword encoders (torch-free). Files may be paths or addresses, which are downloaded and cached."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq.dataclass.base import MISSING, FairseqDataclass, option

GPT2_ENCODER_JSON = "https://dl.fbaipublicfiles.com/fairseq/gpt2_bpe/encoder.json"
GPT2_VOCAB_BPE = "https://dl.fbaipublicfiles.com/fairseq/gpt2_bpe/vocab.bpe"
GPT2_DICT = "https://dl.fbaipublicfiles.com/fairseq/gpt2_bpe/dict.txt"  # RoBERTa's dictionary of these pieces


@dataclass(kw_only=True)
class GPT2BPEConfig(FairseqDataclass):
    """The byte-level BPE of GPT-2 and RoBERTa."""

    gpt2_encoder_json: str = option(GPT2_ENCODER_JSON, "encoder.json: map of BPE pieces to ids")
    gpt2_vocab_bpe: str = option(GPT2_VOCAB_BPE, "vocab.bpe: the merges, best first")


@dataclass(kw_only=True)
class SentencepieceConfig(FairseqDataclass):
    """SentencePiece models (XLM-R, CamemBERT)."""

    sentencepiece_model: str = option(MISSING, "sentencepiece .model file")
    sentencepiece_albert: bool = option(
        False,
        "read text as ALBERT's tokenizer does: without accents and upper case, commas apart from digits",
        new=True,
    )
    sentencepiece_enable_sampling: bool = option(False, "sample a segmentation anew each time (subword regularization)")
    sentencepiece_alpha: float | None = option(
        None, "smoothing of the sampling (unigram) or merge drop-out probability (bpe)", within="[0, inf)"
    )


@dataclass(kw_only=True)
class BertBPEConfig(FairseqDataclass):
    """BERT's word pieces."""

    bpe_cased: bool = option(False, "keep upper and lower case apart")
    bpe_vocab_file: str | None = option(None, "vocab.txt: one word piece a line")


@dataclass(kw_only=True)
class HuggingFaceByteLevelBPEConfig(FairseqDataclass):
    """A byte-level BPE trained with Hugging Face tokenizers (GottBERT)."""

    bpe_merges: str = option(MISSING, "merges.txt")
    bpe_vocab: str = option(MISSING, "vocab.json")
    bpe_add_prefix_space: bool = option(False, "treat the first word of a text like those after a space")


@dataclass(kw_only=True)
class HuggingFaceTokenizerConfig(FairseqDataclass):
    """Any Hugging Face tokenizer saved as one tokenizer.json (new here)."""

    hf_tokenizer_file: str = option(MISSING, "tokenizer.json", new=True)
