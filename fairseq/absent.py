"""Import paths of the original that are not here, and the sentence each of them gives.

Importing one raises OutOfScopeError, so that an old plugin hears at once what it cannot have. A few names stand in as
stubs instead, because helper modules of masked-LM tests and plugins import them beside what they use: a stub can be
imported and subclassed, and gives its sentence when it is created or called.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

from fairseq import scope
from fairseq.errors import OutOfScopeError

MODULES = {
    **dict.fromkeys(
        (
            "fairseq.sequence_generator",
            "fairseq.sequence_scorer",
            "fairseq.search",
            "fairseq.iterative_refinement_generator",
            "fairseq.incremental_decoding_utils",
            "fairseq.token_generation_constraints",
            "fairseq.ngram_repeat_block",
            "fairseq.data.noising",
            "fairseq.data.backtranslation_dataset",
            "fairseq.data.denoising_dataset",
            "fairseq.data.round_robin_zip_datasets",
            "fairseq.data.multilingual",
            "fairseq.models.transformer",
            "fairseq.models.transformer_align",
            "fairseq.models.transformer_from_pretrained_xlm",
            "fairseq.models.bart",
            "fairseq.models.fconv",
            "fairseq.models.lightconv",
            "fairseq.models.lstm",
            "fairseq.models.nat",
            "fairseq.models.multilingual_transformer",
            "fairseq.models.roberta.enc_dec",
            "fairseq.models.fairseq_decoder",
            "fairseq.models.fairseq_incremental_decoder",
            "fairseq.models.composite_encoder",
            "fairseq.models.distributed_fairseq_model",
            "fairseq.criterions.label_smoothed_cross_entropy",
            "fairseq.criterions.nat_loss",
            "fairseq.tasks.translation",
            "fairseq.tasks.multilingual_translation",
            "fairseq.tasks.denoising",
            "fairseq.tasks.semisupervised_translation",
            "fairseq.tasks.online_backtranslation",
            "fairseq.scoring.bleu",
            "fairseq.scoring.tokenizer",
            "fairseq_cli.score",
        ),
        scope.SEQ2SEQ,
    ),
    **dict.fromkeys(
        (
            "fairseq.models.transformer_lm",
            "fairseq.models.fconv_lm",
            "fairseq.models.lstm_lm",
            "fairseq.models.lightconv_lm",
            "fairseq.data.monolingual_dataset",
            "fairseq.data.lm_context_window_dataset",
            "fairseq.tasks.language_modeling",
            "fairseq.criterions.adaptive_loss",
            "fairseq.modules.adaptive_softmax",
            "fairseq.modules.adaptive_input",
        ),
        scope.CAUSAL,
    ),
    **dict.fromkeys(
        (
            "fairseq.data.audio",
            "fairseq.models.wav2vec",
            "fairseq.models.hubert",
            "fairseq.models.speech_to_text",
            "fairseq.models.speech_to_speech",
            "fairseq.models.text_to_speech",
            "fairseq.tasks.audio_pretraining",
            "fairseq.tasks.speech_to_text",
            "fairseq.criterions.ctc",
            "fairseq.criterions.wav2vec_criterion",
            "fairseq.speech_generator",
        ),
        scope.SPEECH,
    ),
    **dict.fromkeys(("fairseq.models.huggingface", "fairseq.model_parallel"), "model-parallel and wrapped models"),
    "fairseq.modules.quantization": "product quantization",
    **dict.fromkeys(("fairseq.models.masked_lm", "fairseq.data.legacy"), "the legacy XLM/BERT model (use roberta)"),
    "fairseq.optim.bmuf": "block-momentum training (BMUF)",
    "fairseq.benchmark": "the old dummy tasks (see benchmarks/)",
}
NAMES = {
    **dict.fromkeys(
        (
            "fairseq.data.BacktranslationDataset",
            "fairseq.data.DenoisingDataset",
            "fairseq.data.LanguagePairDataset",
            "fairseq.data.NoisingDataset",
            "fairseq.data.RoundRobinZipDatasets",
            "fairseq.data.TransformEosDataset",
            "fairseq.data.TransformEosLangPairDataset",
            "fairseq.models.CompositeEncoder",
            "fairseq.modules.AdaptiveSoftmax",
            "fairseq.modules.BeamableMM",
            "fairseq.modules.TransformerDecoderLayer",
        ),
        scope.SEQ2SEQ,
    ),
    **dict.fromkeys(
        ("fairseq.data.MonolingualDataset", "fairseq.data.LMContextWindowDataset"),
        scope.CAUSAL,
    ),
    **dict.fromkeys(
        ("fairseq.data.FileAudioDataset", "fairseq.data.AddTargetDataset", "fairseq.data.HubertDataset"), scope.SPEECH
    ),
}
# What the original's tests/utils.py imports beside the masked-LM parts.
STUBS = {
    "fairseq.data.language_pair_dataset": ("collate", "LanguagePairDataset"),
    "fairseq_cli.eval_lm": ("main", "cli_main"),
    "fairseq_cli.generate": ("main", "cli_main"),
    "fairseq_cli.interactive": ("main", "cli_main"),
}


def name_of_package(package: str, name: str) -> Any:
    """What ``package.name`` gives when it is not there: a stub, an OutOfScopeError, or an AttributeError."""
    full = f"{package}.{name}"
    if full in NAMES:
        raise _error(full, NAMES[full])
    if name in STUBS.get(package, ()):
        return _stub(package, name)
    raise AttributeError(f"module {package!r} has no attribute {name!r}")


def install() -> None:
    """Answer imports of absent modules. The finder comes last, so it costs nothing when an import succeeds."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


class _Finder:
    """Import-system hook: refuses absent modules and makes the few stub modules.

    Not derived from the classes of ``importlib.abc``, whose import alone takes longer than all of this package's start.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in MODULES:
            raise _error(name, MODULES[name])
        if name in STUBS:
            return ModuleSpec(name, self)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        for name in STUBS[module.__name__]:
            setattr(module, name, _stub(module.__name__, name))


def _stub(module: str, name: str) -> type:
    def refuse(self: object, *args: object, **kwargs: object) -> NoReturn:
        raise _error(f"{module}.{name}", scope.SEQ2SEQ)

    return type(name, (), {"__init__": refuse, "__module__": module, "__doc__": f"Stands in for {name}; unusable."})


def _error(name: str, field: str) -> OutOfScopeError:
    return OutOfScopeError(f"{name} belongs to {field}, which is out of scope: {scope.HERE}")
