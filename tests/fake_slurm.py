"""SLURM on this machine, as far as submitit asks for it: ``python -m tests.fake_slurm sbatch SCRIPT``, ``srun``, ...

Jobs are files in ``$FAKE_SLURM``: their states, the processes of their tasks, and which are to start again.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PROGRAMS = ("sbatch", "srun", "scontrol", "sacct")


def install(folder: Path) -> dict[str, str]:
    """Write the programs into ``folder``; returns the environment in which they are found."""
    folder.mkdir(parents=True)
    for name in PROGRAMS:
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.fake_slurm {name} "$@"\n')
        program.chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "FAKE_SLURM": str(folder)}


def sbatch(script: str) -> None:
    """An array is started as one job per element, whose number follows that of the array."""
    text, first = Path(script).read_text(), os.getpid()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", text, re.MULTILINE))
    last = re.match(r"0-(\d+)", options.get("array", "0-0"))
    assert last is not None and options["signal"].startswith("USR")
    nodes, tasks = int(options["nodes"]), int(options["ntasks-per-node"])
    for element in range(int(last[1]) + 1):
        own = {"JOB_ID": first + element, "JOB_NUM_NODES": nodes, "NTASKS": nodes * tasks}
        array = {"ARRAY_JOB_ID": first, "ARRAY_TASK_ID": element} if "array" in options else {}
        environment = {f"SLURM_{name}": str(value) for name, value in {**own, **array}.items()}
        subprocess.Popen(
            [sys.executable, "-m", "tests.fake_slurm", "job", script],
            env={**os.environ, **environment, "SLURM_JOB_NODELIST": "localhost"},
            stdout=subprocess.DEVNULL,  # whoever called reads ours to its end
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    print(f"Submitted batch job {first}")


def name_of_job() -> str:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return os.environ["SLURM_JOB_ID"] if array is None else f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"


def file_of(kind: str, job: str) -> Path:
    return Path(os.environ["FAKE_SLURM"]) / f"{kind}.{job}"


def job(script: str) -> None:
    text, name = Path(script).read_text(), name_of_job()  # submitit moves the file
    while True:
        file_of("state", name).write_text("RUNNING")
        subprocess.run(["bash", "-c", text], check=False)
        try:
            file_of("again", name).unlink()
        except FileNotFoundError:
            break
    file_of("state", name).write_text("COMPLETED")


def srun(*words: str) -> None:
    files = {"--output": "", "--error": ""}
    command, place = [], 0
    while place < len(words):
        if words[place] in files:
            files[words[place]] = words[place + 1].replace("%A_%a", name_of_job())
            Path(files[words[place]]).parent.mkdir(exist_ok=True)
            place += 1
        elif words[place] != "--unbuffered":
            command.append(words[place])
        place += 1
    size, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_JOB_NUM_NODES"])
    step = {"SLURM_STEP_NUM_TASKS": size, "SLURM_STEP_NUM_NODES": nodes}
    started = []
    for task in range(size):
        own = {
            **step,
            "SLURM_PROCID": task,
            "SLURM_NODEID": task * nodes // size,
            "SLURM_LOCALID": task % (size // nodes),
        }
        output, error = (open(name.replace("%t", str(task)), "a") for name in files.values())  # noqa: SIM115
        environment = {**os.environ, **{name: str(value) for name, value in own.items()}}
        started.append(subprocess.Popen(command, env=environment, stdout=output, stderr=error))
    file_of("tasks", name_of_job()).write_text(" ".join(str(process.pid) for process in started))
    sys.exit(max(process.wait() for process in started))


def scontrol(action: str, name: str) -> None:
    assert action == "requeue"
    file_of("again", name).touch()


def sacct(*_: str) -> None:
    print("JobID|State|NodeList")
    for path in Path(os.environ["FAKE_SLURM"]).glob("state.*"):
        print(f"{path.name.removeprefix('state.')}|{path.read_text()}|localhost")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
