"""Three processes, started once, share the parameters of small models of every kind; this one checks what they did."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairseq.dataclass.configs import DistributedTrainingConfig, EMAConfig, OptimizationConfig
from fairseq.distributed import group, shards
from fairseq.distributed.placement import Placement, free_port
from fairseq.distributed.processes import run_processes
from fairseq.errors import ConfigError
from fairseq.optim import precision
from fairseq.optim.ema import EMA
from fairseq.optim.parameter_groups import freeze
from fairseq.registry import OPTIMIZERS
from fairseq.training.nan_detector import first_bad_tensor
from fairseq.training.peers import Accumulated
from fairseq.training.sharding import Sharded, check_sharding, meet, planned
from fairseq.tree import is_sharded
from tests.unit.roberta import KINDS, small_model, without_dropout

SIZE = 3  # so that rows are many, one, or none
UPDATES = 3
SIZES = {"encoder_layers": 2, "encoder_embed_dim": 16, "encoder_attention_heads": 2, "max_positions": 40}

Case = dict[str, Any]
"""Settings of a model; in ``run`` what is asked of the run: bf16, an optimizer, ..."""

CASES: dict[str, Case] = {
    **{name: {"arch": name, "run": {"layers": number % 2 == 0}} for number, name in enumerate(KINDS)},
    "half": {"run": {"bf16": True}},
    "half, bigs": {"arch": "bigs_128", "run": {"bf16": True}},
    "half, clap": {"arch": "roberta_alibi_clap", "run": {"bf16": True}},
    "amp": {"run": {"amp": True}},
    "recomputed": {"checkpoint_activations": True},
    "recomputed, kept": {"checkpoint_activations": True, "run": {"no_reshard_after_forward": True}},
    "frozen": {"run": {"freeze": "embed_tokens,layers.0"}},
    "sparse": {"arch": "roberta_fff", "run": {"sparse": True}},
    **{name: {"run": {"optimizer": name}} for name in ("adamw", "sgd", "nag", "adamax", "adagrad", "adadelta")},
}


def settings(case: Case) -> SimpleNamespace:
    """The root configuration of a case."""
    asked = {"layers": True, "optimizer": "adam", **case.get("run", {})}
    name = asked["optimizer"]
    optimizer = SimpleNamespace(**vars(OPTIMIZERS.config_class(name)()))
    optimizer._name, optimizer.lr, optimizer.fff_sparse_update = name, [0.05], asked.get("sparse", False)
    optimizer.weight_decay = 0.1
    optimizer.adam_eps = optimizer.adamax_eps = 1e-3  # keys have biases whose gradient is noise
    section = DistributedTrainingConfig(
        distributed_world_size=SIZE,
        device_id=0,
        heartbeat_timeout=60,
        ddp_backend="fully_sharded",
        no_reshard_after_forward=asked.get("no_reshard_after_forward", False),
    )
    common = SimpleNamespace(
        cpu=True, user_dir=None, seed=1, bf16=asked.get("bf16", False), amp=asked.get("amp", False)
    )
    return SimpleNamespace(
        distributed_training=section,
        common=common,
        optimization=OptimizationConfig(freeze=asked.get("freeze", "")),
        optimizer=optimizer,
        model=SimpleNamespace(min_params_to_wrap=0 if asked["layers"] else 10**9),
    )


def batch(number: int) -> tuple[Tensor, Tensor]:
    """Ids (B, T) and which of them are predicted."""
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(4, 30, (2, 9), generator=generator)
    ids[1, 9 - number % 4 :] = 1
    return ids, (torch.arange(9) % 3 == 1).expand(ids.shape) & ids.ne(1)


def loss_of(model: nn.Module, number: int) -> Tensor:
    ids, masked = batch(number)
    assert model.computes_loss
    torch.manual_seed(number)  # for a model that masks itself
    return model(ids, masked_tokens=masked, masked_targets=ids[masked])[0]


def updates(case: Case, cfg: Any, sharded: bool) -> dict[str, Any]:
    """What some updates come to, of all batches: on a process of many, or on one alone."""
    torch.manual_seed(5)
    model = small_model(**without_dropout(**SIZES, **{key: value for key, value in case.items() if key != "run"}))
    mode = precision.resolve(cfg.common, "cpu")
    model = precision.cast_model(model, mode)
    freeze(list(model.named_parameters()), cfg.optimization.freeze)
    sharding = planned(cfg, mode) if sharded else None
    ema = EMA(model, EMAConfig(ema_decay=0.5), place=sharding and sharding.apply)
    if sharded:
        peers: Any = Sharded(model, nn.Identity(), sharding, cfg, True, dict)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizer = precision.build(mode, cfg, peers.rows(named) if sharded else named, sharded)
    numbers: list[tuple[float, float]] = []
    own = range(group.get_global_rank(), 6, SIZE) if sharded else range(6)
    for update in range(UPDATES):
        total = Accumulated()
        optimizer.zero_grad()
        if sharded:
            peers.forget_gradients()
        batches = [6 * update + number for number in own]
        for number in peers.each(batches, update) if sharded else batches:
            with optimizer.autocast():
                loss = loss_of(model, number)
            optimizer.backward(loss)
            total.loss, total.sample_size = total.loss + loss.detach(), total.sample_size + batch(number)[1].sum()
            total.logging_outputs.append({})
        total = peers.add_up(total) if sharded else total
        optimizer.multiply_grads((peers.averaged if sharded else 1.0) / total.divisor())
        norm = optimizer.clip_unread(0.5)
        numbers.append((float(total.loss), float(norm)))
        optimizer.step()
        ema.step(model, update + 1)
    with torch.no_grad():
        numbers.append((float(loss_of(model, 0)), 0.0))
    state: Any = {
        "model": precision.full_precision_state(model, optimizer),
        "optimizer": optimizer.state_dict(),
        "ema": ema.extra_state()["ema"],
    }
    if sharded:
        state = copy.deepcopy(shards.whole(state, keep=True))
    return {
        "numbers": numbers,
        "state": state,
        "held": sum(p.numel() for p in optimizer.params),
        "again": not sharded or taken_over(state, model, optimizer, ema, peers),
    }


def taken_over(state: Any, model: nn.Module, optimizer: Any, ema: EMA, peers: Sharded) -> bool:
    """Whether loading the whole ``state`` gives every process what it had, in the memory that the optimizer knows."""
    before = copy.deepcopy(held(model, optimizer))
    with torch.no_grad():
        for tensor in held(model, optimizer):
            tensor.zero_()
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    shared = all(shards.own_rows(p).data_ptr() == own.data_ptr() for p, own in peers._rows)
    averages = [shards.own_rows(p) if is_sharded(p) else p for p in ema.model.parameters()]
    averaged = copy.deepcopy(averages)
    for tensor in averages:
        tensor.zero_()
    ema.resume(peers.placed({"ema": state["ema"]}, ema.extra_state()), model)
    return shared and all(map(torch.equal, before + averaged, held(model, optimizer) + averages))


def held(model: nn.Module, optimizer: Any) -> list[Tensor]:
    """All that this process has of the state."""
    weights = [shards.own_rows(p) if is_sharded(p) else p.data for p in model.parameters()]
    states = [optimizer.optimizer.state[p] for p in optimizer.params]
    return weights + [value for state in states for _, value in sorted(state.items()) if torch.is_tensor(value)]


def uneven(cfg: Any) -> dict[str, Any]:
    """Processes with several, one and no batches, of a model that leaves out layers."""
    cfg.optimization.batch_ramp_updates = 10
    rank, model = group.get_global_rank(), small_model(**SIZES, encoder_layerdrop=0.5)
    peers: Any = meet(cfg, SummingTask(), model, nn.Identity(), planned(cfg, "fp32"), dict)
    parameters = peers.rows(list(model.named_parameters()))
    batches = []
    for number in peers.each(range(2 - rank), 1):
        loss_of(model, number or 0).backward()
        batches.append(number)
    peers.add_up(Accumulated(1.0, 1.0, [{}]))
    found = [None if p.grad is None else p.grad.isfinite().all().item() for _, p in parameters]
    return {"batches": group.gather(batches), "gradients": group.gather(found), "gaps": peers.tolerates_gaps}


def diverged(cfg: Any, what: str) -> list[str | None]:
    """What each process says is not finite, where one row, of the second process, is not: nobody waits for ever."""
    model = small_model(**without_dropout(**SIZES))
    peers: Any = Sharded(model, nn.Identity(), planned(cfg, "fp32"), cfg, True, dict)
    peers.rows(list(model.named_parameters()))
    loss_of(model, 1).backward()
    weight = dict(model.named_parameters())["encoder.sentence_encoder.layers.1.fc1.weight"]
    if group.get_global_rank() == 1:
        shards.own_rows(weight if what == "parameter" else weight.grad)[0, 0] = torch.nan
    return group.gather(first_bad_tensor(model, lambda model, ids: model(ids), [batch(1)[0]], peers.first_found))


class SummingTask:
    @staticmethod
    def logging_outputs_can_be_summed(criterion: Any) -> bool:
        return True


def everything(cfg: Any, path: str) -> None:
    found = {name: updates(case, settings(case), sharded=True) for name, case in CASES.items()}
    found["uneven"] = uneven(settings({}))
    found["diverged"] = [diverged(settings({}), what) for what in ("parameter", "gradient")]
    if group.get_global_rank() == 0:
        torch.save(found, path)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = str(tmp_path_factory.mktemp("sharding") / "results.pt")
    place = Placement(SIZE, f"tcp://127.0.0.1:{free_port()}", start=SIZE)
    run_processes(settings({}), place, everything, {"path": path})
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize("name", CASES)
def test_updates_are_those_of_one_process(name: str, results: Any) -> None:
    case, actual = CASES[name], results[name]
    cfg = settings(case)
    torch.manual_seed(0)
    expected = updates(case, cfg, sharded=False)
    half = cfg.common.bf16 or cfg.common.amp
    tolerance = {"rtol": 3e-2, "atol": 3e-2} if half else {"rtol": 1e-4, "atol": 1e-5}
    assert actual["again"]
    torch.testing.assert_close(
        torch.tensor(actual["numbers"]), torch.tensor(expected["numbers"]), rtol=2e-2 if half else 1e-5, atol=1e-5
    )
    for part in ("model", "ema"):
        assert list(actual["state"][part]) == list(expected["state"][part])
        for key, value in expected["state"][part].items():
            torch.testing.assert_close(actual["state"][part][key].float(), value.float(), msg=key.format, **tolerance)
    states = [found["state"]["optimizer"] for found in (actual, expected)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert list(states[0]["state"]) == list(states[1]["state"])
    for index, entry in states[1]["state"].items():
        assert list(entry) == list(states[0]["state"][index])
        torch.testing.assert_close(states[0]["state"][index], entry, **tolerance)
    assert actual["held"] < 0.6 * expected["held"]


def test_processes_without_batches_take_part(results: Any) -> None:
    found = results["uneven"]
    assert found["batches"] == [[0, 1], [0, None], [None, None]]
    assert len({str(gradients) for gradients in found["gradients"]}) == 1  # the same layers were left out
    assert {True, None} >= set(found["gradients"][0]) and not found["gaps"]


def test_all_processes_name_what_one_of_them_finds(results: Any) -> None:
    name = "encoder.sentence_encoder.layers.1.fc1.weight"
    assert results["diverged"] == [[f"parameter {name}"] * SIZE, [f"gradient of {name}"] * SIZE]


def refusal(optimizer: str = "adam", **options: Any) -> str | None:
    cfg = settings({"run": {"optimizer": optimizer, "amp": options.get("cpu_offload", False)}})
    for name, value in options.items():
        setattr(cfg.distributed_training, name, value)
    try:
        check_sharding(cfg)
    except ConfigError as error:
        return str(error)
    return None


def test_what_does_not_go_with_it_is_refused() -> None:
    assert "--optimizer lamb needs whole parameters" in str(refusal("lamb"))
    assert "--optimizer adafactor needs whole parameters" in str(refusal("adafactor"))
    assert "--ddp-comm-hook" in str(refusal(ddp_comm_hook="fp16"))
    assert "--cpu-offload" in str(refusal(cpu_offload=True))
    assert "--ddp-backend fully_sharded" in str(refusal(zero_sharding="os", ddp_backend="pytorch_ddp"))
    assert refusal() is refusal("lamb", distributed_world_size=1) is refusal("lamb", ddp_backend="c10d") is None


def test_rows_are_those_of_chunks() -> None:
    for count in range(8):
        for rank, chunk in enumerate(torch.arange(count).chunk(3) if count else ()):
            mesh = SimpleNamespace(size=lambda: 3, get_local_rank=lambda rank=rank: rank)
            like = SimpleNamespace(shape=(count,), device_mesh=mesh)
            assert shards.first_row(like) == int(chunk[0])
