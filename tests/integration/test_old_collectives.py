"""The collectives of ``fairseq.distributed.utils`` in a group of two processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.runs import environment

WORKER = """
import sys, torch
from types import SimpleNamespace
import torch.distributed as dist
from fairseq.distributed import utils

rank = int(sys.argv[1])
assert utils.get_world_size() == 1 and utils.get_global_group() is None
section = SimpleNamespace(
    distributed_world_size=2, distributed_rank=rank, distributed_init_method=f"file://{sys.argv[2]}",
    distributed_backend="gloo", device_id=0, heartbeat_timeout=-1,
)
assert utils.distributed_init(SimpleNamespace(distributed_training=section, common=SimpleNamespace(cpu=True))) == rank
group = utils.get_global_group()
assert (utils.get_rank(group), utils.get_world_size(group), utils.get_rank()) == (rank, 2, rank)
assert utils.all_reduce(torch.tensor([1.0 + rank]), group).tolist() == [3.0]
assert utils.all_reduce(torch.tensor([1.0 + rank]), group, op="max").tolist() == [2.0]
tensor = torch.tensor([float(rank)])
utils.broadcast(tensor, src=1, group=group)
assert tensor.tolist() == [1.0]
assert utils.all_gather(torch.tensor([rank]), group, return_tensor=True).tolist() == [[0], [1]]
assert utils.all_gather_list({"rank": rank}, group) == [{"rank": 0}, {"rank": 1}]
assert utils.all_reduce_dict({"a": 1.0 + rank, "b": 2.0}, "cpu", group) == {"a": 3.0, "b": 4.0}
assert utils.broadcast_object({"of": rank} if rank == 0 else None, 0, group, torch.device("cpu")) == {"of": 0}
found = utils.broadcast_tensors([torch.arange(3), torch.ones(2, 2)] if rank == 0 else None, 0, group)
assert [part.tolist() for part in found] == [[0, 1, 2], [[1.0, 1.0], [1.0, 1.0]]]
assert utils.new_groups([[0], [1]]) is not None
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "meet")],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said


SPAWNING = """
import sys
from types import SimpleNamespace
import torch
from fairseq.distributed import utils

def main(cfg, word):
    section = cfg.distributed_training
    print(f"{word} {utils.all_gather_list((section.distributed_rank, section.device_id))}\\n", end="", flush=True)

if __name__ == "__main__":
    section = SimpleNamespace(
        distributed_world_size=2, distributed_rank=None, distributed_init_method=f"file://{sys.argv[1]}",
        distributed_backend="gloo", device_id=0, heartbeat_timeout=-1, distributed_no_spawn=False,
        distributed_num_procs=2,
    )
    cfg = SimpleNamespace(distributed_training=section, common=SimpleNamespace(cpu=True))
    given = {"start_rank": 0, "word": "here"}
    torch.multiprocessing.spawn(utils.distributed_main, args=(main, cfg, given), nprocs=2, join=True)
"""


def test_processes_that_a_script_starts_start_no_others(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SPAWNING)
    done = subprocess.run(
        [sys.executable, script, tmp_path / "meet"], env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["here [(0, 0), (1, 1)]"] * 2
