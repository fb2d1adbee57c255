"""The published relatives of RoBERTa: the same network with other addresses and another BPE."""

from __future__ import annotations

from typing import Any

from fairseq.models.hub import FamilyBPE
from fairseq.models.roberta.addresses import CAMEMBERT, GOTTBERT, XLMR
from fairseq.models.roberta.config import RobertaConfig
from fairseq.models.roberta.hub_interface import RobertaHubInterface
from fairseq.models.roberta.model import RobertaModel
from fairseq.registry import MODELS


@MODELS.register("xlmr", dataclass=RobertaConfig)
class XLMRModel(RobertaModel):
    """XLM-R (Conneau et al. 2019, arXiv 1911.02116)."""

    @classmethod
    def hub_models(cls) -> dict[str, Any]:
        return XLMR

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        model_name_or_path: str,
        checkpoint_file: str = "model.pt",
        data_name_or_path: str = ".",
        bpe: str | None = FamilyBPE("sentencepiece"),
        **kwargs: Any,
    ) -> RobertaHubInterface:
        """As ``RobertaModel.from_pretrained``, with sentencepiece."""
        return super().from_pretrained(model_name_or_path, checkpoint_file, data_name_or_path, bpe, **kwargs)


@MODELS.register("camembert", dataclass=RobertaConfig)
class CamembertModel(XLMRModel):
    """CamemBERT (Martin et al. 2019, arXiv 1911.03894)."""

    @classmethod
    def hub_models(cls) -> dict[str, Any]:
        return CAMEMBERT


@MODELS.register("gottbert", dataclass=RobertaConfig)
class GottbertModel(RobertaModel):
    """GottBERT (Scheible et al. 2020, arXiv 2012.02110)."""

    @classmethod
    def hub_models(cls) -> dict[str, Any]:
        return GOTTBERT

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        model_name_or_path: str,
        checkpoint_file: str = "model.pt",
        data_name_or_path: str = ".",
        bpe: str | None = FamilyBPE("hf_byte_bpe"),
        bpe_vocab: str = "vocab.json",
        bpe_merges: str = "merges.txt",
        bpe_add_prefix_space: bool = False,
        **kwargs: Any,
    ) -> RobertaHubInterface:
        """As ``RobertaModel.from_pretrained``, with a byte-level BPE from ``vocab.json`` and ``merges.txt``."""
        return super().from_pretrained(
            model_name_or_path,
            checkpoint_file,
            data_name_or_path,
            bpe,
            bpe_vocab=bpe_vocab,
            bpe_merges=bpe_merges,
            bpe_add_prefix_space=bpe_add_prefix_space,
            **kwargs,
        )
