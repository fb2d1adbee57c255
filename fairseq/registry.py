"""One class for everything pluggable, and the tables of what is built in.

A component registers itself by decorator::

    @CRITERIONS.register("masked_lm", dataclass=MaskedLmConfig)
    class MaskedLmLoss(FairseqCriterion): ...

Built-ins are listed here by name and imported when first asked for: nothing scans directories, and asking for the
configuration class of a built-in imports only its (torch-free) configuration module. To add a built-in, write its
file and one line in a table below; plugins need only the decorator.
"""

from __future__ import annotations

import difflib
import importlib
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fairseq import refusals
from fairseq.errors import ConfigError

T = TypeVar("T")
C = TypeVar("C")


@dataclass(frozen=True)
class Builtin:
    """Where a built-in lives: ``module`` registers it on import; ``config`` is ``"module:Class"``, free of torch."""

    module: str
    config: str | None = None


def nearest(name: str, known: list[str]) -> str:
    """``"; did you mean 'x'?"`` for the best spelling match among ``known``, or nothing."""
    match = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else ""


class Registry(Generic[T]):
    """Names to classes (or functions) of one kind."""

    def __init__(
        self, kind: str, builtins: Mapping[str, Builtin] | None = None, refused: Mapping[str, str] | None = None
    ) -> None:
        self.kind = kind
        self._builtins = dict(builtins or {})
        self._refused = dict(refused or {})
        self._entries: dict[str, T] = {}
        self._configs: dict[str, type] = {}

    def register(self, name: str, *, dataclass: type | None = None, base: type | None = None) -> Callable[[C], C]:
        """Decorator that registers its argument as ``name``; a taken name is an error that shows both places.

        With ``base`` the argument must be a class derived from it, which is marked with its ``dataclass``.
        """

        def add(entry: C) -> C:
            if base is not None:
                _mark(entry, dataclass, base, f"{self.kind} {name!r}")
            old = self._entries.get(name)
            if old is not None and _origin(old) != _origin(entry):
                raise ConfigError(
                    f"{self.kind} {name!r} is registered twice: by {_origin(old)} and by {_origin(entry)}"
                )
            if (
                old is None
                and name in self._builtins
                and getattr(entry, "__module__", None) != self._builtins[name].module
            ):
                raise ConfigError(
                    f"{self.kind} {name!r} is registered twice: built in ({self._builtins[name].module}) and by {_origin(entry)}"
                )
            self._entries[name] = entry  # type: ignore[assignment]
            if dataclass is not None:
                self._configs[name] = dataclass
            return entry

        return add

    def get(self, name: str) -> T:
        """The entry called ``name``. Raises ConfigError with the known names, or OutOfScopeError with the reason."""
        if name not in self._entries:
            if name not in self._builtins:
                raise self._unknown(name)
            importlib.import_module(self._builtins[name].module)
        return self._entries[name]

    def config_class(self, name: str) -> type | None:
        """The configuration dataclass of ``name`` or None; does not import the component of a built-in."""
        if name in self._configs:
            return self._configs[name]
        if name not in self._builtins:
            if name in self._entries:
                return None
            raise self._unknown(name)
        home = self._builtins[name].config
        if home is None:
            return None
        module, _, attribute = home.partition(":")
        return getattr(importlib.import_module(module), attribute)

    def chosen(self, cfg: Any, key: str) -> str | None:
        """The name that ``cfg`` is or holds: in ``_name`` (a node) or ``key`` (an old flat Namespace)."""
        name = cfg if isinstance(cfg, str) else getattr(cfg, "_name", None) or getattr(cfg, key, None)
        return name if isinstance(name, str) else None

    def resolve(self, cfg: Any, key: str) -> tuple[Any, Any]:
        """The entry that `chosen` names, and its settings as its configuration dataclass if ``cfg`` is not a node."""
        name = self.chosen(cfg, key)
        if name is None:
            known = ", ".join(self.names())
            raise ConfigError(f"no {self.kind} was chosen; give --{key.replace('_', '-')} (known: {known})")
        entry = self.get(name)
        config: Any = self.config_class(name)
        if isinstance(cfg, str):
            cfg = config and config()
        elif isinstance(cfg, Namespace) and hasattr(config, "from_namespace"):
            cfg = config.from_namespace(cfg)
        return entry, cfg

    def build(self, cfg: Any, key: str, *args: Any) -> Any:
        """What `resolve` finds, built by its method ``build_<key>`` or its constructor from the settings and ``args``."""
        entry, settings = self.resolve(cfg, key)
        return getattr(entry, f"build_{key}", entry)(settings, *args)

    def names(self) -> list[str]:
        return sorted({*self._entries, *self._builtins})

    def registered(self) -> dict[str, T]:
        """What has been imported so far; a live view, do not change it."""
        return self._entries

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._builtins

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def _unknown(self, name: str) -> Exception:
        if name in self._refused:
            return refusals.refuse(self.kind, name, self._refused[name], self.names())
        known = self.names()
        return ConfigError(
            f"unknown {self.kind} {name!r}{nearest(name, known) or '.'} Known: {', '.join(known) or 'none'}; "
            "that of a plugin needs --user-dir"
        )


class SlotRegistry(Registry[T]):
    """The variants of one slot of the encoder. A variant's options are keys of the flat model section beside all others,
    so their names must begin with the variant's.
    """

    def register(self, name: str, *, dataclass: type | None = None, base: type | None = None) -> Callable[[C], C]:
        for key in getattr(dataclass, "__dataclass_fields__", ()):
            if not key.startswith((f"{name}_", "_")):
                raise ConfigError(
                    f"option {key!r} of {self.kind} {name!r} must be called {name}_{key}: all options share one section"
                )
        return super().register(name, dataclass=dataclass, base=base)


class RegistryView(Mapping[str, Any]):
    """A registry as the read-only dictionary that old plugins look into; built-ins are imported when looked up."""

    def __init__(self, registry: Registry[Any], read: Callable[[str], Any] | None = None) -> None:
        self._registry = registry
        self._read = read or registry.get

    def __getitem__(self, name: str) -> Any:
        if name not in self._registry:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._registry

    def __iter__(self) -> Iterator[str]:
        return iter(self._registry)

    def __len__(self) -> int:
        return len(self._registry.names())


def _mark(cls: Any, dataclass: type | None, base: type, what: str) -> None:
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ConfigError(f"the {what} ({cls!r}) must derive from {base.__name__}")
    cls.__dataclass = dataclass  # type: ignore[attr-defined]


def _origin(entry: Any) -> str:
    return f"{getattr(entry, '__module__', '?')}.{getattr(entry, '__qualname__', entry)}"


_TASK_CONFIGS = "fairseq.tasks.configs"
TASKS: Registry[Any] = Registry(
    "task",
    {
        "masked_lm": Builtin("fairseq.tasks.masked_lm", f"{_TASK_CONFIGS}:MaskedLMConfig"),
        "multilingual_masked_lm": Builtin(
            "fairseq.tasks.multilingual_masked_lm", f"{_TASK_CONFIGS}:MultiLingualMaskedLMConfig"
        ),
        "sentence_prediction": Builtin("fairseq.tasks.sentence_task", f"{_TASK_CONFIGS}:SentencePredictionConfig"),
        "sentence_ranking": Builtin("fairseq.tasks.choices", f"{_TASK_CONFIGS}:SentenceRankingConfig"),
        "multiple_choice": Builtin("fairseq.tasks.choices", f"{_TASK_CONFIGS}:MultipleChoiceConfig"),
        "commonsense_qa": Builtin("fairseq.tasks.choices", f"{_TASK_CONFIGS}:CommonsenseQAConfig"),
        "question_answering": Builtin("fairseq.tasks.question_answering", f"{_TASK_CONFIGS}:QuestionAnsweringConfig"),
        "token_classification": Builtin(
            "fairseq.tasks.token_classification", f"{_TASK_CONFIGS}:TokenClassificationConfig"
        ),
    },
    refused=refusals.TASKS,
)
MODELS: Registry[Any] = Registry(
    "model",
    {
        "roberta": Builtin("fairseq.models.roberta.model", "fairseq.models.roberta.config:RobertaConfig"),
        "xlmr": Builtin("fairseq.models.roberta.published", "fairseq.models.roberta.config:RobertaConfig"),
        "camembert": Builtin("fairseq.models.roberta.published", "fairseq.models.roberta.config:RobertaConfig"),
        "gottbert": Builtin("fairseq.models.roberta.published", "fairseq.models.roberta.config:RobertaConfig"),
    },
    refused=refusals.MODELS,
)
# Trees x depth of the fast feed-forward models of arXiv 2311.10770.
FFF_SIZES = tuple("3072x0 1536x1 512x2 256x3 128x4 64x5 32x6 16x7 8x8 4x9 2x10 1x11".split())
BIGS_LENGTHS = (128, 512, 1024, 4096)  # longest inputs of the published models of arXiv 2212.10544
_PRESETS = Builtin("fairseq.models.roberta.presets", "fairseq.models.roberta.config:RobertaConfig")
ARCHITECTURES: Registry[Any] = Registry(
    "architecture",
    dict.fromkeys(
        (
            "roberta",
            "roberta_base",
            "roberta_large",
            "roberta_prenorm",
            "xlm",
            "roberta_alibi",
            "roberta_alibi_large",
            "roberta_clap",
            "roberta_clap_large",
            "roberta_alibi_clap",
            "roberta_alibi_clap_large",
            "roberta_zero_clap",
            "roberta_zero_clap_large",
            "roberta_fff",
            "roberta_fff_large",
            "roberta_conv",
            "roberta_conv_absolute",
            "roberta_conv_depthwise",
            "roberta_convbert",
            "bert_conv_base",
            "crammed_bert",
            "crammed_bert_3072",
            "crammed_bert_4095",
            *(f"ultrafastbert_{size}" for size in FFF_SIZES),
            "roberta_bigs",
            "roberta_bigs_large",
            *(f"bigs_{length}" for length in BIGS_LENGTHS),
        ),
        _PRESETS,
    ),
    refused=refusals.MODELS,
)
# Architecture -> model that it configures; ``register_model_architecture`` adds those of plugins.
ARCHITECTURE_MODELS: dict[str, str] = dict.fromkeys(ARCHITECTURES.names(), "roberta")
_CRITERION_CONFIGS = "fairseq.criterions.configs"
CRITERIONS: Registry[Any] = Registry(
    "criterion",
    {
        "masked_lm": Builtin("fairseq.criterions.masked_lm", f"{_CRITERION_CONFIGS}:MaskedLmConfig"),
        "sentence_prediction": Builtin(
            "fairseq.criterions.sentences", f"{_CRITERION_CONFIGS}:SentencePredictionConfig"
        ),
        "sentence_prediction_r3f": Builtin(
            "fairseq.criterions.sentence_prediction_r3f", f"{_CRITERION_CONFIGS}:SentencePredictionR3FConfig"
        ),
        "sentence_ranking": Builtin("fairseq.criterions.sentences", f"{_CRITERION_CONFIGS}:SentenceRankingConfig"),
        "question_answering": Builtin(
            "fairseq.criterions.tokens", f"{_CRITERION_CONFIGS}:QuestionAnsweringCriterionConfig"
        ),
        "token_classification": Builtin(
            "fairseq.criterions.tokens", f"{_CRITERION_CONFIGS}:TokenClassificationCriterionConfig"
        ),
    },
    refused=refusals.CRITERIONS,
)
_OPTIM_CONFIGS = "fairseq.optim.configs"
OPTIMIZERS: Registry[Any] = Registry(
    "optimizer",
    {
        "adam": Builtin("fairseq.optim.adam", f"{_OPTIM_CONFIGS}:FairseqAdamConfig"),
        "adamw": Builtin("fairseq.optim.adam", f"{_OPTIM_CONFIGS}:AdamWConfig"),
        "sgd": Builtin("fairseq.optim.others", f"{_OPTIM_CONFIGS}:SGDConfig"),
        "adagrad": Builtin("fairseq.optim.others", f"{_OPTIM_CONFIGS}:AdagradConfig"),
        "adadelta": Builtin("fairseq.optim.others", f"{_OPTIM_CONFIGS}:AdadeltaConfig"),
        "adamax": Builtin("fairseq.optim.classic", f"{_OPTIM_CONFIGS}:FairseqAdamaxConfig"),
        "nag": Builtin("fairseq.optim.classic", f"{_OPTIM_CONFIGS}:FairseqNAGConfig"),
        "lamb": Builtin("fairseq.optim.classic", f"{_OPTIM_CONFIGS}:FairseqLAMBConfig"),
        "adafactor": Builtin("fairseq.optim.adafactor", f"{_OPTIM_CONFIGS}:FairseqAdafactorConfig"),
    },
    refused=refusals.OPTIMIZERS,
)
LR_SCHEDULERS: Registry[Any] = Registry(
    "learning-rate schedule",
    {
        name: Builtin(f"fairseq.optim.{module}", f"{_OPTIM_CONFIGS}:{config}")
        for module, schedules in {
            "lr_scheduler": {
                "fixed": "FixedLRScheduleConfig",
                "polynomial_decay": "PolynomialDecayLRScheduleConfig",
                "cosine": "CosineLRScheduleConfig",
                "inverse_sqrt": "InverseSquareRootLRScheduleConfig",
                "tri_stage": "TriStageLRScheduleConfig",
                "budget_triangular": "BudgetTriangularLRScheduleConfig",
                "triangular": "TriangularLRScheduleConfig",
                "step": "StepLRScheduleConfig",
            },
            "other_schedules": {
                "reduce_lr_on_plateau": "ReduceLROnPlateauLRScheduleConfig",
                "manual": "ManualScheduleConfig",
                "pass_through": "PassThroughScheduleConfig",
            },
        }.items()
        for name, config in schedules.items()
    },
)
_ENCODERS = "fairseq.data.encoders"
BPES: Registry[Any] = Registry(
    "bpe",
    {
        "gpt2": Builtin(f"{_ENCODERS}.gpt2_bpe", f"{_ENCODERS}.configs:GPT2BPEConfig"),
        "sentencepiece": Builtin(f"{_ENCODERS}.libraries", f"{_ENCODERS}.configs:SentencepieceConfig"),
        "bert": Builtin(f"{_ENCODERS}.libraries", f"{_ENCODERS}.configs:BertBPEConfig"),
        "hf_byte_bpe": Builtin(f"{_ENCODERS}.libraries", f"{_ENCODERS}.configs:HuggingFaceByteLevelBPEConfig"),
        "hf_tokenizer": Builtin(f"{_ENCODERS}.libraries", f"{_ENCODERS}.configs:HuggingFaceTokenizerConfig"),
    },
    refused=refusals.BPES,
)
TOKENIZERS: Registry[Any] = Registry("tokenizer", {"space": Builtin(f"{_ENCODERS}.base")}, refused=refusals.TOKENIZERS)
SCORERS: Registry[Any] = Registry("scorer", refused=refusals.SCORERS)

# Formats of pretrained models, which fairseq-convert reads and writes.
FORMATS: Registry[Any] = Registry(
    "model format",
    {
        "fairseq": Builtin("fairseq.interop.fairseq_folder"),
        "fairseq-alibi-clap": Builtin("fairseq.interop.fairseq_alibi_clap"),
        "fairseq-upstream": Builtin("fairseq.interop.fairseq_alibi_clap"),
        "ultrafastbert": Builtin("fairseq.interop.ultrafastbert"),
        "bigs-torch": Builtin("fairseq.interop.bigs"),
        "bigs-flax": Builtin("fairseq.interop.bigs"),
        "bert-convolutions": Builtin("fairseq.interop.bert_convolutions"),
        "hf-auto": Builtin("fairseq.interop.hf_auto"),
        "hf-roberta": Builtin("fairseq.interop.hf_roberta"),
        "hf-bert": Builtin("fairseq.interop.hf_bert"),
        "sentence-transformers": Builtin("fairseq.interop.sentence_transformers"),
    },
)

# Slots of the encoder: the variants are under fairseq/modules.
POSITIONS: Registry[Any] = SlotRegistry(
    "position embedding",
    {
        "learned": Builtin("fairseq.modules.positions", "fairseq.modules.configs:LearnedPositionsConfig"),
        "sinusoidal": Builtin("fairseq.modules.positions", "fairseq.modules.configs:SinusoidalPositionsConfig"),
        "scaled_sinusoidal": Builtin("fairseq.modules.positions"),
        "none": Builtin("fairseq.modules.positions"),
    },
)
ATTENTION_BIASES: Registry[Any] = SlotRegistry(
    "attention bias", dict.fromkeys(("alibi", "alibi_asymmetrical", "none"), Builtin("fairseq.modules.attention_bias"))
)
TOKEN_MIXERS: Registry[Any] = SlotRegistry(
    "token mixer",
    {
        "self_attention": Builtin("fairseq.modules.attention", "fairseq.modules.configs:SelfAttentionConfig"),
        "bigs": Builtin("fairseq.modules.bigs", "fairseq.modules.configs:BiGSConfig"),
        "conv_attention": Builtin("fairseq.modules.conv_attention", "fairseq.modules.configs:ConvAttentionConfig"),
    },
)
CHANNEL_MIXERS: Registry[Any] = SlotRegistry(
    "channel mixer",
    {
        "feed_forward": Builtin("fairseq.modules.feed_forward"),
        "fff": Builtin("fairseq.modules.fff", "fairseq.modules.configs:FastFeedForwardConfig"),
        "none": Builtin("fairseq.modules.feed_forward"),
    },
)
LM_HEADS: Registry[Any] = SlotRegistry(
    "LM head",
    {
        "roberta": Builtin("fairseq.modules.lm_head"),
        "clap": Builtin("fairseq.modules.lm_head"),
        "product": Builtin("fairseq.modules.lm_head", "fairseq.modules.configs:ProductHeadConfig"),
    },
)
# Heads on features, which tasks add to a model.
HEADS: Registry[Any] = Registry(
    "head", dict.fromkeys(("classification", "span", "token"), Builtin("fairseq.modules.task_heads"))
)
