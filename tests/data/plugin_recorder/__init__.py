"""A plugin that changes nothing and writes down which of the methods that it overrides are called (file ``RECORD``)."""

import atexit
import functools
import inspect
import json
import os

import fairseq.tasks.masked_lm as masked_lm
from fairseq.criterions import register_criterion
from fairseq.criterions.masked_lm import MaskedLmLoss
from fairseq.models import register_model, register_model_architecture
from fairseq.models.roberta import RobertaEncoder, RobertaModel, base_architecture
from fairseq.tasks import register_task
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask

called = {}


def note(owner, name):
    called.setdefault(owner, set()).add(name)


def override(owner, name, raw):
    if isinstance(raw, property):
        return property(lambda self: (note(owner, name), raw.__get__(self))[1])
    function = raw.__func__ if isinstance(raw, (classmethod, staticmethod)) else raw

    @functools.wraps(function)
    def recorded(*args, **kwargs):
        note(owner, name)
        return function(*args, **kwargs)

    return type(raw)(recorded) if isinstance(raw, (classmethod, staticmethod)) else recorded


def recording(base, names):
    """A subclass of ``base`` that overrides ``names`` and calls what it overrides."""
    methods = {name: override(base.__name__, name, inspect.getattr_static(base, name)) for name in names.split()}
    return type(base.__name__, (base,), {"__module__": __name__, **methods})


ITEMS = "__getitem__ __len__ collater set_epoch supports_prefetch can_reuse_epoch_itr_across_epochs"
CUTTING = "num_tokens batch_by_size filter_indices_by_size get_batch_shapes"
METHODS = {
    "MaskedLMTask": (
        "add_args setup_task build_model build_criterion load_dataset dataset max_positions has_sharded_data "
        "get_batch_iterator filter_indices_by_size can_reuse_epoch_itr begin_epoch begin_valid_epoch train_step valid_step "
        "optimizer_step reduce_metrics state_dict load_state_dict get_checkpoint_dict source_dictionary target_dictionary"
    ),
    "MaskedLmLoss": "add_args build_criterion forward reduce_metrics",
    "RobertaModel": (
        "add_args build_model forward get_targets max_positions set_num_updates set_epoch upgrade_state_dict "
        "upgrade_state_dict_named load_state_dict state_dict"
    ),
    "RobertaEncoder": (
        "build_embedding build_encoder build_lm_head forward extract_features output_layer max_positions set_num_updates "
        "upgrade_state_dict_named"
    ),
    "NestedDictionaryDataset": f"{ITEMS} {CUTTING}",
    "SortDataset": "__getitem__ collater set_epoch ordered_indices batch_by_size filter_indices_by_size",
    "MaskTokensDataset": "apply_mask __getitem__ set_epoch",
    "PrependTokenDataset": "__getitem__ sizes set_epoch",
    "TokenBlockDataset": "__getitem__ __len__",
    "RightPadDataset": "__getitem__ collater set_epoch",
    "NumelDataset": "__getitem__ collater",
}

for kind in list(METHODS)[4:]:
    setattr(masked_lm, kind, recording(getattr(masked_lm, kind), METHODS[kind]))

Encoder = recording(RobertaEncoder, METHODS["RobertaEncoder"])


class Model(RobertaModel):
    @classmethod
    def build_model(cls, args, task):
        base_architecture(args)
        if getattr(args, "max_positions", None) is None:
            args.max_positions = task.cfg.tokens_per_sample
        return cls(args, Encoder(args, task.source_dictionary))


Model.__name__ = "RobertaModel"
register_model("recorder")(recording(Model, METHODS["RobertaModel"]))
register_model_architecture("recorder", "recorder")(lambda args: base_architecture(args))
register_task("recorder", dataclass=MaskedLMConfig)(recording(MaskedLMTask, METHODS["MaskedLMTask"]))
register_criterion("recorder")(recording(MaskedLmLoss, METHODS["MaskedLmLoss"]))


def write():
    missing = {kind: sorted(set(names.split()) - called.get(kind, set())) for kind, names in METHODS.items()}
    with open(os.environ["RECORD"], "w") as handle:
        json.dump(missing, handle)


atexit.register(write)
