"""``fairseq-info``: versions, devices, what a run would use, operators and components, to read or to paste in a report."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

import fairseq
from fairseq import registry
from fairseq.cli import process
from fairseq.cli.common import run_command
from fairseq.cli.process import prepare_to_compute
from fairseq.dataclass.flags import FairseqParser
from fairseq.ops import native

PACKAGES = (
    "torch",
    "numpy",
    "hydra-core",
    "omegaconf",
    "tokenizers",
    "sentencepiece",
    "safetensors",
    "tqdm",
    "matplotlib",
    "tensorboard",
    "triton",
    "wandb",
)
REFERENCE = "reference implementations run instead"


def main(args: argparse.Namespace) -> None:
    """Print the report: this process is set up as one that trains."""
    prepare_to_compute()
    if args.user_dir:
        from fairseq.dataclass.user_module import import_user_module

        import_user_module(args)
    for title, rows in (
        ("Versions", versions()),
        ("Devices", devices()),
        ("Computing on the CPU", computing()),
        ("Compiled operators", operators()),
        ("Registered components", components()),
    ):
        print(title)
        for name, value in rows:
            print(f"  {name:<24} {value}")


def versions() -> Iterator[tuple[str, str]]:
    """Rows (package, version) of this package, Python and what it stands on."""
    yield "fairseq", f"{fairseq.__version__} ({Path(fairseq.__file__).parent})"
    yield "python", f"{platform.python_version()} ({platform.system()} {platform.machine()})"
    for name in PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "not installed"


def devices() -> Iterator[tuple[str, str]]:
    """Rows about the processor, threads and graphics cards; one row with the reason when torch cannot be imported."""
    try:
        import torch
    except ImportError as error:
        yield "torch", f"cannot be imported: {error}"
        return
    cores = process.affinity()
    yield "cpu", f"{cores} usable cores, {torch.backends.cpu.get_cpu_capability()} instructions"
    if not torch.cuda.is_available():
        yield "cuda", "no device" if torch.version.cuda else "this build of torch has no CUDA"
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        bf16 = ", bf16" if torch.cuda.is_bf16_supported() else ""
        yield f"cuda:{index}", f"{card.name}, {card.total_memory / 2**30:.1f} GiB, sm_{card.major}{card.minor}{bf16}"


def computing() -> Iterator[tuple[str, str]]:
    """Rows about what a training run on the CPU would use: threads, memory, and who multiplies matrices."""
    try:
        import torch

        from fairseq.ops.linear import float32_library, has_native_bfloat16
    except ImportError:  # the devices say why
        return
    share = process.quota()
    limit = "" if share is None else f", control groups grant {share} processors"
    yield (
        "threads",
        f"{torch.get_num_threads()} within an operator (OMP_NUM_THREADS{limit}), "
        f"{torch.get_num_interop_threads()} beside, 1 a data worker",
    )
    yield "waiting threads", f"{process.describe_waiting()} (FAIRSEQ_WAIT=passive: sleep, for shared processors)"
    yield "memory", f"{process.describe_allocator()} (FAIRSEQ_MALLOC)"
    mkl, onednn = torch.backends.mkl.is_available(), torch.backends.mkldnn.is_available()
    found = [name for name, there in (("MKL", mkl), ("oneDNN", onednn)) if there]
    yield "matrix libraries", ", ".join(found) or "those of this build of torch"
    yield "products in float32", f"{float32_library()} (FAIRSEQ_LINEAR)"
    native = "its own instructions" if has_native_bfloat16() else "float32 copies (no instructions for it)"
    yield "products in bfloat16", native


def operators() -> Iterator[tuple[str, str]]:
    """Rows about each library of compiled operators: what it holds for which device, or why it is not in use."""
    reason = native.why_unavailable()
    yield "data", "batch_by_size, complete_blocks" if reason is None else f"{REFERENCE}: {reason}"
    try:
        import torch

        from fairseq.ops import library
    except ImportError:  # the devices say why
        return
    reason = library.why_unavailable()
    if reason is not None:
        yield "tensors", f"{REFERENCE}: {reason}"
        return
    for device in ("cpu", "cuda"):
        kernels = torch._C._dispatch_get_registrations_for_dispatch_key(device.upper())
        names = sorted(name.removeprefix("fairseq::") for name in kernels if name.startswith("fairseq::"))
        yield f"tensors on {device}", ", ".join(names) or f"{REFERENCE}: none were built for this device"


def components() -> Iterator[tuple[str, str]]:
    """Rows (kind, names) of every registry that holds something."""
    for found in vars(registry).values():
        if isinstance(found, registry.Registry) and found.names():
            yield found.kind, ", ".join(found.names())


def get_parser() -> argparse.ArgumentParser:
    parser = FairseqParser(
        prog="fairseq-info",
        description="Show versions, devices, what a run would use, compiled operators and registered components.",
    )
    parser.add_argument("--user-dir", metavar="DIR", help="import this plugin directory first and list its components")
    return parser


def cli_main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    run_command("fairseq-info", lambda: main(get_parser().parse_args(argv)))


if __name__ == "__main__":
    cli_main()
