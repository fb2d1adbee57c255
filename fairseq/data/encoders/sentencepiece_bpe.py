"""``--bpe sentencepiece``: the symbols are the pieces, U+2581 standing for a space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sentencepiece

from fairseq.data.encoders.base import Ids, flatten, required_file
from fairseq.data.encoders.configs import SentencepieceConfig
from fairseq.data.encoders.offsets import Span
from fairseq.errors import DataError
from fairseq.registry import BPES

_SPACE = "\u2581"
_SPECIALS = frozenset(("<unk>", "<s>", "</s>", "<pad>"))


@BPES.register("sentencepiece", dataclass=SentencepieceConfig)
class SentencepieceBPE:
    """Text to space-joined pieces and back."""

    def __init__(self, cfg: Any) -> None:
        path = required_file(cfg, "sentencepiece_model", "sentencepiece")
        self.enable_sampling = bool(getattr(cfg, "sentencepiece_enable_sampling", False))
        self.alpha = getattr(cfg, "sentencepiece_alpha", None)
        self.sp = sentencepiece.SentencePieceProcessor()
        try:
            self.sp.Load(path)
        except (RuntimeError, OSError) as error:
            raise DataError(f"{path} is no sentencepiece model: {str(error).strip()}") from None
        self.symbols = [self.sp.IdToPiece(idx) for idx in range(len(self.sp))]
        self._index = {piece: idx for idx, piece in enumerate(self.symbols)}

    def _options(self) -> dict[str, Any]:
        if not self.enable_sampling:
            return {}
        alpha = {} if self.alpha is None else {"alpha": self.alpha}
        return {"enable_sampling": True, **alpha}

    def encode(self, x: str) -> str:
        return " ".join(self.sp.encode(x, out_type=str, **self._options()))

    def decode(self, x: str) -> str:
        return x.replace(" ", "").replace(_SPACE, " ").strip()

    def is_beginning_of_word(self, x: str) -> bool:
        return x in _SPECIALS or x.startswith(_SPACE)

    def encode_lines(self, lines: Sequence[str]) -> tuple[Ids, Ids]:
        """Local ids; a character outside the model is a symbol of its own, as in `encode`, not the unk piece."""
        rows: list[list[int]] = self.sp.encode(list(lines), out_type=int, num_threads=1, **self._options())
        unk = self.sp.unk_id()
        for i, row in enumerate(rows):
            if unk in row or self.enable_sampling:
                rows[i] = [self._local(piece) for piece in self.encode(lines[i]).split(" ") if piece]
        return flatten(rows)

    def encode_with_offsets(self, x: str) -> tuple[list[str], list[Span]]:
        """Pieces and the characters of each, before the model's normalisation."""
        encode: Any = self.sp.encode
        try:
            found = encode(x, out_type="offset_mapping", **self._options())
        except (ValueError, RuntimeError):  # releases before 0.2.2
            proto = encode(x, out_type="immutable_proto", **self._options())
            return [piece.piece for piece in proto.pieces], [(piece.begin, piece.end) for piece in proto.pieces]
        return found["pieces"], found["offsets"]

    def _local(self, piece: str) -> int:
        if piece not in self._index:
            self._index[piece] = len(self.symbols)
            self.symbols.append(piece)
        return self._index[piece]
