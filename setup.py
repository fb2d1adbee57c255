"""Builds the compiled operators; everything else about the package is in pyproject.toml.

- ``fairseq/csrc/data/*.cpp``: plain C functions on arrays, needs a C++ compiler only.
- ``fairseq/csrc/torch/*.cpp``: operators on tensors, built when torch can be imported here (so install with
  ``--no-build-isolation``).
- ``fairseq/csrc/cuda``: their CUDA kernels, when nvcc with its headers and a CUDA build of torch are found, for the
  architectures in ``TORCH_CUDA_ARCH_LIST``; without it for the devices of this machine, or, where none is visible, for
  compute capability 8.0 and 9.0 (and what comes later).

Nothing of this is required, and each is built on its own: what cannot be built is left out with a warning, and the
reference implementations run instead. ``FAIRSEQ_NATIVE=0`` skips all of it.
"""

from __future__ import annotations

import glob
import os
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FLAGS = ["-O3", "-std=c++17"]
ARCHITECTURES = "8.0;9.0+PTX"


def data_extension() -> Extension:
    return Extension(
        "fairseq.ops._data",
        sorted(glob.glob("fairseq/csrc/data/*.cpp")),
        extra_compile_args=FLAGS,
        language="c++",
        optional=True,  # setuptools then warns about a failed build and goes on
    )


def torch_extensions() -> tuple[list[Extension], type[build_ext]]:
    """The extensions with the tensor operators, if torch is here, and the command that builds them."""
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        warn(
            f"the operators on tensors are left out: torch cannot be imported in the environment of this build ({error}). "
            'To have them: pip install torch "setuptools>=77" wheel, then pip install --no-build-isolation .'
        )
        return [], build_ext
    # torch chooses the language standard that its headers need. Loops are vectorized once per instruction set, by
    # attributes in the sources: what is built here also runs on an older processor.
    cxx = ["-O3", "-g0", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
    found = [
        cpp_extension.CppExtension(
            "fairseq.ops._torch",
            sorted(glob.glob("fairseq/csrc/torch/*.cpp")),
            extra_compile_args={"cxx": cxx},
            extra_link_args=["-fopenmp"],
            optional=True,
        )
    ]
    if torch.version.cuda and has_cuda_headers(cpp_extension.CUDA_HOME):
        if not torch.cuda.is_available():
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
        found.append(
            cpp_extension.CUDAExtension(
                "fairseq.ops._cuda",
                sorted(glob.glob("fairseq/csrc/cuda/*.cu") + glob.glob("fairseq/csrc/cuda/*.cpp")),
                extra_compile_args={"cxx": cxx, "nvcc": ["-O3"]},
                optional=True,
            )
        )
    return found, cpp_extension.BuildExtension


def has_cuda_headers(home: str | None) -> bool:
    """Whether ``home`` (torch may have guessed it from a stray nvcc) holds what CUDA sources include."""
    return home is not None and os.path.isfile(os.path.join(home, "include", "cuda_runtime.h"))


def warn(message: str) -> None:
    print(f"warning: fairseq: {message}", file=sys.stderr)


def commands_and_extensions() -> dict[str, object]:
    if os.environ.get("FAIRSEQ_NATIVE") == "0":
        return {}
    extensions, base = torch_extensions()

    class build_optional(base):  # type: ignore[misc, valid-type]
        """Builds what it can: torch's own checks (compiler, CUDA version) raise errors setuptools does not expect."""

        def build_extensions(self) -> None:
            wanted = self.extensions
            for extension in wanted:
                self.extensions = [extension]
                builder = build_ext if extension.name == "fairseq.ops._data" else base
                try:
                    builder.build_extensions(self)
                except Exception as error:
                    warn(f"{extension.name} is not built: {error}")
            self.extensions = wanted

    return {"ext_modules": [data_extension(), *extensions], "cmdclass": {"build_ext": build_optional}}


setup(**commands_and_extensions())
