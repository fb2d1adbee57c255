"""Subword encoders (``--bpe``) and tokenizers (``--tokenizer``), by name; see `fairseq.data.encoders.base`."""

from fairseq.lazy import exporter

__getattr__, __dir__, __all__ = exporter(
    __name__,
    {
        "build_bpe": "base",
        "build_tokenizer": "base",
        "register_bpe": "base",
        "register_tokenizer": "base",
        "gpt2_bpe": "",
        "gpt2_bpe_utils": "",
        "utils": "",
    },
)
