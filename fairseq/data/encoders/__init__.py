"""Sub-word encoders (``--bpe``) and tokenizers (``--tokenizer``), by name; see `fairseq.data.encoders.build`."""

from fairseq.lazy import exporter

__getattr__, __dir__, __all__ = exporter(
    __name__,
    {
        "build_bpe": "build",
        "build_tokenizer": "build",
        "register_bpe": "build",
        "register_tokenizer": "build",
        "gpt2_bpe": "",
        "gpt2_bpe_utils": "",
        "utils": "",
    },
)
