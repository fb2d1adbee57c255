"""Which processes a run has: by torchrun's variables, SLURM's, an address, or started here."""

from types import SimpleNamespace

import pytest

from fairseq.dataclass.configs import DistributedTrainingConfig, visible_gpus
from fairseq.dataclass.parser import get_training_parser, parse_args_and_arch
from fairseq.distributed import placement
from fairseq.distributed.placement import Placement, find_placement, first_host
from fairseq.errors import ConfigError

TORCHRUN = {"MASTER_ADDR": "a", "MASTER_PORT": "1", "WORLD_SIZE": "6", "RANK": "5", "LOCAL_RANK": "1"}
SRUN = {
    **{"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "node[07-08]"},
    **{"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_JOB_ID": "12"},
}


def found(environment=None, cpu=True, gpus=0, monkeypatch=None, **options):
    if monkeypatch is not None:
        monkeypatch.setattr(placement, "_gpus", lambda: gpus)
    section = DistributedTrainingConfig(**{"distributed_world_size": 1, "device_id": 0, **options})
    cfg = SimpleNamespace(distributed_training=section, common=SimpleNamespace(cpu=cpu))
    return find_placement(cfg, environment or {})


def test_one_process():
    assert found() == Placement()
    assert found({"SLURM_JOB_ID": "3", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}) == Placement()


def test_started_here():
    own = found(distributed_world_size=3)
    assert own.size == own.start == 3 and own.address.startswith("tcp://127.0.0.1:")
    with pytest.raises(ConfigError, match="torchrun"):
        found(distributed_world_size=3, distributed_no_spawn=True)
    with pytest.raises(ConfigError, match="at least 1"):
        found(distributed_world_size=0)


def test_one_process_for_each_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert visible_gpus() == DistributedTrainingConfig().distributed_world_size == 2
    assert found(cpu=False, gpus=2, monkeypatch=monkeypatch, distributed_world_size=2).start == 2
    assert found(cpu=False, gpus=0, monkeypatch=monkeypatch, distributed_world_size=2) == Placement()
    assert found(cpu=True, gpus=2, monkeypatch=monkeypatch, distributed_world_size=2) == Placement()
    with pytest.raises(ConfigError, match="has 2 GPU"):
        found(cpu=False, gpus=2, monkeypatch=monkeypatch, distributed_world_size=3)
    for devices in ("", "-1", "0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
        assert visible_gpus() == 1


def test_by_torch_distributed_launch():
    words = ["d", "--task", "masked_lm", "--arch", "roberta", "--lr", "1", "--batch-size", "1", "--optimizer", "adam"]
    for flag in ("--local_rank=3", "--local-rank=3"):
        assert parse_args_and_arch(get_training_parser(), [*words, flag]).device_id == 3


def test_by_torchrun():
    assert found(TORCHRUN) == Placement(6, "env://", 5, 1)
    assert found({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}).size == 1
    with pytest.raises(ConfigError, match="RANK must be a number, but is 'x'"):
        found({**TORCHRUN, "RANK": "x"})


def test_by_slurm(monkeypatch):
    port = placement.PORTS[12]
    assert found(SRUN) == Placement(8, f"tcp://node07:{port}", 5, 0)
    assert found(SRUN, distributed_port=99).address == "tcp://node07:99"
    assert found(SRUN, cpu=False, gpus=4, monkeypatch=monkeypatch).device == 1
    assert found(SRUN, cpu=False, gpus=1, monkeypatch=monkeypatch).device == 0  # --gpus-per-task=1
    nodes = {**SRUN, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}  # a task for each machine
    assert found(nodes, cpu=False, gpus=4, monkeypatch=monkeypatch) == Placement(8, f"tcp://node07:{port}", 4, 0, 4)


@pytest.mark.parametrize(
    "listed, host", [("gpu1", "gpu1"), ("a[3,5-7],b", "a3"), ("n-[001-128]", "n-001"), ("x,y", "x")]
)
def test_first_host(listed, host):
    assert first_host(listed) == host


def test_by_address():
    address = {"distributed_init_method": "tcp://host:1", "distributed_world_size": 4, "distributed_rank": 2}
    assert found(**address, distributed_no_spawn=True) == Placement(4, "tcp://host:1", 2, 0)
    assert found(**address, distributed_num_procs=2).start == 2
    with pytest.raises(ConfigError, match="from 0 to 3"):
        found(**{**address, "distributed_rank": 4})
