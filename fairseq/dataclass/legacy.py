"""What stored configurations carry and this project does not do: default tables, and which values are refused.

Every old file carries these keys. At their default they pass silently; another value in something the user asks for
is refused with one sentence, because ignoring it would change the run behind the user's back.
"""

from __future__ import annotations

from typing import Any

from fairseq.dataclass.base import field_specs
from fairseq.dataclass.configs import BMUF, QUANTIZATION, SECTIONS, SLOWMO
from fairseq.errors import OutOfScopeError
from fairseq.refusals import HERE

# Sections that are stored with their defaults only, so that the original can read our checkpoints.
STORED_SECTIONS: dict[str, dict[str, Any]] = {
    "bmuf": {
        "_name": None,
        "block_lr": 1.0,
        "block_momentum": 0.875,
        "global_sync_iter": 50,
        "warmup_iterations": 500,
        "use_nbm": False,
        "average_sync": False,
        "distributed_world_size": 1,
    },
    "generation": {
        "_name": None,
        "beam": 5,
        "beam_mt": 0,
        "nbest": 1,
        "max_len_a": 0.0,
        "max_len_b": 200,
        "max_len_a_mt": 0.0,
        "max_len_b_mt": 200,
        "min_len": 1,
        "match_source_len": False,
        "unnormalized": False,
        "no_early_stop": False,
        "no_beamable_mm": False,
        "lenpen": 1.0,
        "lenpen_mt": 1.0,
        "unkpen": 0.0,
        "replace_unk": None,
        "sacrebleu": False,
        "score_reference": False,
        "prefix_size": 0,
        "no_repeat_ngram_size": 0,
        "sampling": False,
        "sampling_topk": -1,
        "sampling_topp": -1.0,
        "constraints": None,
        "temperature": 1.0,
        "diverse_beam_groups": -1,
        "diverse_beam_strength": 0.5,
        "diversity_rate": -1.0,
        "print_alignment": None,
        "print_step": False,
        "lm_path": None,
        "lm_weight": 0.0,
        "iter_decode_eos_penalty": 0.0,
        "iter_decode_max_iter": 10,
        "iter_decode_force_max_iter": False,
        "iter_decode_with_beam": 1,
        "iter_decode_with_external_reranker": False,
        "retain_iter_history": False,
        "retain_dropout": False,
        "retain_dropout_modules": None,
        "decoding_format": None,
        "no_seed_provided": False,
        "eos_token": None,
    },
    "eval_lm": {
        "_name": None,
        "output_word_probs": False,
        "output_word_stats": False,
        "context_window": 0,
        "softmax_batch": 2**63 - 1,
    },
    "interactive": {
        "_name": None,
        "buffer_size": 0,
        "input": "-",
    },
}

_ADAPRUNE = "adaptive pruning (AdaPrune)"
_SEQ2SEQ = "sequence-to-sequence generation"
_D2V = "data2vec 2.0"

# section -> key -> (default, what it belongs to). Those that a configuration class carries are stored, others dropped.
OUT_OF_SCOPE: dict[str, dict[str, tuple[Any, str]]] = {
    **{
        section: {
            key: (spec.default, spec.metadata["belongs_to"])
            for key, spec in field_specs(cls).items()
            if "belongs_to" in spec.metadata
        }
        for section, cls in SECTIONS.items()
    },
    "model": {
        "quant_noise_pq": (0, QUANTIZATION),
        "quant_noise_pq_block_size": (8, QUANTIZATION),
        "quant_noise_scalar": (0, QUANTIZATION),
        "adaptive_input": (False, "adaptive input embeddings"),
        "mha_reg_scale_factor": (0.0, _ADAPRUNE),
        "ffn_reg_scale_factor": (0.0, _ADAPRUNE),
        "mha_heads_to_keep": (-1, _ADAPRUNE),
        "ffn_blocks_to_remove": (-1, _ADAPRUNE),
        "encoder_xformers_att_config": (None, "xFormers attention"),
        "export": (False, "TorchScript export of the layer norm"),
    },
    "task": {
        "include_index": (True, _D2V),
        "skip_masking": (False, _D2V),
        "d2v2_multi": (False, _D2V),
        "rebuild_batches": (False, _D2V),
    },
}
OUT_OF_SCOPE["optimization"]["debug_param_names"] = (False, "debugging of parameter names")
OUT_OF_SCOPE.update(
    {
        section: {key: (default, BMUF if section == "bmuf" else _SEQ2SEQ) for key, default in table.items()}
        for section, table in STORED_SECTIONS.items()
    }
)

# Keys of old files that have another name now, or none (None): section -> old -> new.
RENAMED: dict[str, dict[str, str | None]] = {
    "task": {"omit_mask_and_pad": "omit_mask", "omit_unk": None},
    "model": {"encoding_repeat": None, "vae_beta": None, "initial_scale": None},
    "common_eval": {"remove_bpe": "post_process"},
    "dataset": {"max_sentences": "batch_size", "max_sentences_valid": "batch_size_valid"},
    "lr_scheduler": {"lr_decay_period": "lr_deacy_period"},  # later versions spell it right
}

# Values that a mirrored key (it follows another one) or an original's automatism may have without asking for anything.
_MIRRORS = {("generation", "no_seed_provided"), ("bmuf", "distributed_world_size")}


def is_out_of_scope(section: str, key: str) -> bool:
    return key in OUT_OF_SCOPE.get(section, {})


def check_value(section: str, key: str, value: Any) -> None:
    """Refuse an out-of-scope ``value`` of ``section.key`` (OutOfScopeError); anything else passes."""
    field = SLOWMO if (section, key, value) == ("distributed_training", "ddp_backend", "slowmo") else None
    if is_out_of_scope(section, key) and (section, key) not in _MIRRORS:
        default, belongs_to = OUT_OF_SCOPE[section][key]
        if key != "_name" and value is not None and value != default:
            field = belongs_to
    if field is not None:
        raise OutOfScopeError(f"{section}.{key}={value!r} asks for {field}, which is out of scope: {HERE}")
