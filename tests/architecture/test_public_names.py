"""Import paths that old plugins, scripts and tests use: kept, or answered with one clear sentence."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from fairseq.compat import absent
from fairseq.compat.aliases import ALIASES
from fairseq.errors import OutOfScopeError
from scripts import compat_report
from tests.architecture import source

KEPT = {
    "fairseq.data": (
        "AppendTokenDataset BaseWrapperDataset ConcatDataset ConcatSentencesDataset CountingIterator Dictionary "
        "EpochBatchIterator FairseqDataset GroupedIterator IdDataset IndexedCachedDataset IndexedDataset "
        "IndexedRawTextDataset LRUCacheDataset LeftPadDataset ListDataset MMapIndexedDataset MaskTokensDataset "
        "NestedDictionaryDataset NumSamplesDataset NumelDataset OffsetTokensDataset PadDataset PrependTokenDataset "
        "RandomCropDataset RawLabelDataset ResamplingDataset RightPadDataset RightPaddingMaskDataset RollDataset "
        "ShardedIterator SortDataset StripTokenDataset SubsampleDataset TokenBlockDataset TruncateDataset "
        "data_utils encoders indexed_dataset iterators"
    ),
    "fairseq.data.data_utils_fast": "batch_by_size_fn batch_by_size_vec",
    "fairseq.data.token_block_utils_fast": "",
    "fairseq.data.data_utils": "load_indexed_dataset collate_tokens numpy_seed batch_by_size infer_language_pair",
    "fairseq.data.indexed_dataset": "MMapIndexedDatasetBuilder best_fitting_int_dtype make_builder make_dataset",
    "fairseq.data.iterators": "BufferedIterator EpochBatchIterator GroupedIterator",
    "fairseq.data.shorten_dataset": "maybe_shorten_dataset",
    "fairseq.data.encoders": "build_bpe build_tokenizer register_bpe register_tokenizer",
    "fairseq.data.encoders.gpt2_bpe": "get_encoder GPT2BPE GPT2BPEConfig",
    "fairseq.data.encoders.utils": "get_whole_word_mask",
    "fairseq.binarizer": "FileBinarizer VocabularyDatasetBinarizer",
    "fairseq.file_chunker_utils": "Chunker find_offsets",
    "fairseq.tokenizer": "tokenize_line",
    "fairseq.file_utils": "cached_path",
    "fairseq.file_io": "PathManager",
    "fairseq.options": (
        "get_preprocessing_parser get_training_parser get_validation_parser parse_args_and_arch get_args "
        "add_dataset_args add_model_args"
    ),
    "fairseq.registry": "Registry",
    "fairseq.tasks": "FairseqTask LegacyFairseqTask register_task setup_task TASK_REGISTRY",
    "fairseq.tasks.fairseq_task": "FairseqTask LegacyFairseqTask",
    "fairseq.tasks.masked_lm": "MaskedLMConfig MaskedLMTask",
    "fairseq.criterions": "FairseqCriterion LegacyFairseqCriterion register_criterion build_criterion",
    "fairseq.criterions.masked_lm": "MaskedLmLoss",
    "fairseq.optim": "FairseqOptimizer LegacyFairseqOptimizer build_optimizer register_optimizer",
    "fairseq.optim.adam": "FairseqAdam FairseqAdamConfig",
    "fairseq.optim.fp16_optimizer": "FP16Optimizer MemoryEfficientFP16Optimizer",
    "fairseq.optim.lr_scheduler": "FairseqLRScheduler LegacyFairseqLRScheduler build_lr_scheduler register_lr_scheduler",
    "fairseq.dataclass": "ChoiceEnum FairseqDataclass",
    "fairseq.dataclass.configs": "FairseqConfig CommonConfig CheckpointConfig DatasetConfig OptimizationConfig",
    "fairseq.dataclass.utils": "convert_namespace_to_omegaconf gen_parser_from_dataclass",
    "fairseq.models": (
        "ARCH_CONFIG_REGISTRY ARCH_MODEL_REGISTRY BaseFairseqModel FairseqDecoder FairseqEncoder "
        "FairseqEncoderDecoderModel FairseqEncoderModel FairseqIncrementalDecoder FairseqLanguageModel MODEL_REGISTRY "
        "build_model register_model register_model_architecture"
    ),
    "fairseq.models.fairseq_encoder": "EncoderOut FairseqEncoder",
    "fairseq.models.ema": "EMA",
    "fairseq.models.roberta": (
        "CamembertModel GottbertModel RobertaClassificationHead RobertaEncoder RobertaHubInterface RobertaLMHead "
        "RobertaModel XLMRModel base_architecture init_bert_params roberta_base_architecture "
        "roberta_large_architecture roberta_prenorm_architecture xlm_architecture"
    ),
    "fairseq.models.roberta.model": "RobertaModel RobertaEncoder RobertaLMHead base_architecture",
    "fairseq.models.roberta.hub_interface": "RobertaHubInterface",
    "fairseq.models.roberta.alignment_utils": "align_bpe_to_words",
    "fairseq.modules": "LayerNorm LearnedPositionalEmbedding PositionalEmbedding SinusoidalPositionalEmbedding",
    "fairseq.checkpoint_utils": (
        "checkpoint_paths load_checkpoint load_checkpoint_to_cpu load_model_ensemble load_model_ensemble_and_task "
        "save_checkpoint torch_persistent_save verify_checkpoint_directory"
    ),
    "fairseq.distributed": "utils",
    "fairseq.distributed.utils": "call_main is_master",
    "fairseq.distributed_utils": "call_main is_master",
    "fairseq.hub_utils": "from_pretrained",
    "fairseq.logging": "meters metrics progress_bar",
    "fairseq.logging.metrics": "aggregate log_scalar",
    "fairseq.logging.meters": "AverageMeter StopwatchMeter TimeMeter",
    "fairseq.logging.progress_bar": "progress_bar",
    "fairseq.meters": "AverageMeter",
    "fairseq.metrics": "aggregate log_scalar log_derived",
    "fairseq.nan_detector": "NanDetector",
    "fairseq.progress_bar": "progress_bar",
    "fairseq.scoring": "register_scorer",
    "fairseq.trainer": "Trainer",
    "fairseq.utils": (
        "apply_to_sample clip_grad_norm_ convert_padding_direction get_activation_fn import_user_module item "
        "make_positions move_to_cuda resolve_max_positions set_torch_seed"
    ),
    "fairseq.version": "__version__",
    "fairseq_cli.train": "main cli_main",
    "fairseq_cli.validate": "main cli_main",
    "fairseq_cli.preprocess": "main cli_main",
    "fairseq_cli.hydra_train": "cli_main",
    # Imported by helpers of old tests beside the masked-LM parts; refused when used.
    "fairseq.data.language_pair_dataset": "collate",
    "fairseq_cli.generate": "main",
    "fairseq_cli.interactive": "main",
    "fairseq_cli.eval_lm": "main",
}


@pytest.mark.parametrize("module", KEPT)
def test_kept(module: str):
    found = importlib.import_module(module)
    missing = [name for name in KEPT[module].split() if not hasattr(found, name)]
    assert not missing, f"{module} lacks {', '.join(missing)}"


@pytest.mark.parametrize("old", ALIASES)
def test_every_alias_is_served(old: str):
    assert old not in source.module_names(), "a file of that name hides the alias"
    found, home = importlib.import_module(old), ALIASES[old]
    if isinstance(home, str):
        assert found is importlib.import_module(home)
    else:
        assert all(hasattr(found, name) for name in home)
    package, _, name = old.rpartition(".")
    attribute = getattr(importlib.import_module(package), name)
    assert attribute is found or old in SHADOWED


SHADOWED = ("fairseq.modules.gelu", "fairseq.modules.cross_entropy")  # the package has a function of that name


@pytest.mark.parametrize("package", [name for name in KEPT if name.count(".") == 1 and KEPT[name]])
def test_lazy_exports_all_work(package: str):
    found = importlib.import_module(package)
    for name in getattr(found, "__all__", ()):
        getattr(found, name)


OUT_OF_SCOPE = "out of scope: this fairseq trains and serves masked language models"


def sentence_of(statement: str) -> str:
    with pytest.raises(OutOfScopeError) as caught:
        exec(statement, {})
    sentence = str(caught.value)
    assert OUT_OF_SCOPE in sentence and "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    "statement",
    [
        "import fairseq.models.wav2vec",
        "from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Model",
        "from fairseq.sequence_generator import SequenceGenerator",
        "from fairseq import search",
        "import fairseq; fairseq.search",
        "from fairseq.data import FileAudioDataset",
        "from fairseq.data.data_utils import compute_mask_indices",
        "import fairseq.optim; fairseq.optim.FairseqBMUF",
        "from fairseq_cli.train import validate_and_save",
        "from fairseq_cli.score import main",
    ],
)
def test_refused_at_once(statement: str):
    sentence_of(statement)


def test_the_sentence_says_what_to_use_instead():
    assert sentence_of("import fairseq.models.wav2vec").endswith("; for it use the original, fairseq 0.12")
    assert "(use masked_lm and roberta)" in sentence_of("import fairseq.models.masked_lm")
    assert sentence_of("from fairseq.models.bart import BARTModel; BARTModel(1)").endswith("; use RobertaModel")
    for name in set(absent.INSTEAD.values()):
        module, _, attribute = name.rpartition(".")
        homes = [module] if module else ["fairseq.data", "fairseq.models", "fairseq.models.roberta", *HOMES]
        assert any(hasattr(importlib.import_module(home), attribute) for home in homes), name


HOMES = ("fairseq.tasks.masked_lm", "fairseq.criterions.masked_lm")


@pytest.mark.parametrize(
    "statement",
    [
        "from fairseq.data import LanguagePairDataset as Thing",
        "from fairseq.data.language_pair_dataset import collate as Thing",
        "import fairseq.data; Thing = fairseq.data.MonolingualDataset",
        "from fairseq.models import FairseqIncrementalDecoder as Thing",
        "from fairseq.models.bart import BARTModel as Thing",
        "from fairseq.models.roberta.model import TransformerEncoder as Thing",
        "from fairseq.models.transformer import TransformerModel as Thing",
        "from fairseq.models.transformer.transformer_config import TransformerConfig as Thing",
        "from fairseq.modules import TransformerEncoderLayer as Thing",
        "from fairseq.criterions.cross_entropy import CrossEntropyCriterion as Thing",
        "from fairseq.tasks.translation import TranslationTask as Thing",
        "from fairseq_cli.generate import cli_main as Thing",
        "from fairseq.utils import replace_unk as Thing",
    ],
)
def test_refused_when_used(statement: str):
    exec(f"{statement}\nassert not isinstance(3, Thing)\nclass Mine(Thing): pass", {})
    assert sentence_of(f"{statement}\nThing(1, 2)") == sentence_of(f"{statement}\nclass Mine(Thing): pass\nMine()")
    assert not hasattr(importlib.import_module("fairseq.data").LanguagePairDataset, "nothing_of_this_name")


def test_stand_ins_can_be_registered():
    """Files of a plugin beside its masked-LM code register what they derive."""
    from fairseq.criterions import register_criterion
    from fairseq.models import register_model
    from fairseq.models.transformer import TransformerModel
    from fairseq.tasks import register_task

    register_model("stand_in_model")(type("StandInModel", (TransformerModel,), {"__module__": __name__}))
    assert "from_pretrained" in TransformerModel.__dict__
    sentence_of("from fairseq.models.transformer import TransformerModel; TransformerModel.from_pretrained('x')")
    task = importlib.import_module("fairseq.tasks.translation").TranslationTask
    register_task("stand_in_task")(type("StandInTask", (task,), {"__module__": __name__}))
    loss = importlib.import_module("fairseq.criterions.cross_entropy").CrossEntropyCriterion
    register_criterion("stand_in_loss")(type("StandInLoss", (loss,), {"__module__": __name__}))


def test_task_of_another_field():
    sentence_of("from fairseq.tasks import setup_task; setup_task(type('Task', (), {'_name': 'translation'})())")


def test_modules_are_attributes_of_the_package():
    code = """if True:
        import sys, fairseq
        assert "torch" not in sys.modules and "fairseq.checkpoint_utils" not in sys.modules
        for name in "checkpoint_utils utils tasks options data metrics models criterions optim modules distributed".split():
            assert getattr(fairseq, name) is sys.modules["fairseq." + name]
        fairseq.tasks.sentence_prediction.SentencePredictionTask, fairseq.data.data_utils.collate_tokens
        assert not hasattr(fairseq, "search") and not hasattr(fairseq, "nothing_of_this_name")
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=source.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_functions_stay_when_modules_of_their_name_are_imported():
    importlib.import_module("fairseq.modules.cross_entropy")
    importlib.import_module("fairseq.modules.gelu")
    from fairseq.modules import cross_entropy, gelu

    assert callable(gelu) and callable(cross_entropy)


def test_guards_by_import_error():
    """``try: import ... except ImportError`` takes what is out of scope for what is not installed."""
    with pytest.raises(ImportError) as caught:
        importlib.import_module("fairseq.models.wav2vec.wav2vec2")
    assert caught.value.name == "fairseq.models.wav2vec"
    data = importlib.import_module("fairseq.data")
    assert not hasattr(data, "FileAudioDataset") and getattr(data, "HubertDataset", 3) == 3


def test_every_old_module_and_name_is_answered():
    modules = {name: compat_report.judge_module(name) for name in compat_report.old_modules()}
    names = {f"{module}.{name}": compat_report.judge_name(module, name) for module, name in compat_report.old_names()}
    assert [name for name, verdict in {**modules, **names}.items() if verdict == compat_report.BARE] == []
    assert len(modules) == 459 and sum(verdict == compat_report.KEPT for verdict in modules.values()) >= 158
    assert sum(verdict == compat_report.KEPT for verdict in names.values()) >= 640


def test_nothing_that_is_here_is_refused():
    """The tables of what is absent hold nothing that has come since."""
    found = {*source.module_names(), *ALIASES}
    assert [name for name in absent.MODULES if name in found] == []
    tables = {*absent.NAMES, *absent.STAND_INS}
    kept = [
        pair for pair in compat_report.old_names() if pair[1] in tables and compat_report.judge_name(*pair) == "kept"
    ]
    assert kept == []


def test_misspelt_names_are_ordinary_errors():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("fairseq.modls")
    with pytest.raises(ImportError, match="Dictonary"):
        exec("from fairseq.data import Dictonary", {})
