"""Builds the compiled operators; everything else about the package is in pyproject.toml.

- ``fairseq/csrc/data/*.cpp``: plain C functions on arrays, needs a C++ compiler only.
- ``fairseq/csrc/torch/*.cpp``: operators on tensors, built when torch can be imported here (so install with
  ``--no-build-isolation``); together with ``fairseq/csrc/cuda`` when nvcc and a CUDA build of torch are found,
  for the devices in ``TORCH_CUDA_ARCH_LIST`` (default: those of this machine).

Nothing of this is required: what cannot be built is left out with a warning, and the reference implementations run instead.
``FAIRSEQ_NATIVE=0`` skips all of it.
"""

from __future__ import annotations

import glob
import os
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FLAGS = ["-O3", "-std=c++17"]


def data_extension() -> Extension:
    return Extension(
        "fairseq.ops._data",
        sorted(glob.glob("fairseq/csrc/data/*.cpp")),
        extra_compile_args=FLAGS,
        language="c++",
        optional=True,  # setuptools then warns about a failed build and goes on
    )


def torch_extensions() -> tuple[list[Extension], type[build_ext]]:
    """The extension with the tensor operators, if there are sources and torch, and the command that builds it."""
    sources = sorted(glob.glob("fairseq/csrc/torch/*.cpp"))
    if not sources:
        return [], build_ext
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
    flags = {"cxx": ["-O3", "-g0", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"], "nvcc": ["-O3"]}
    kind = cpp_extension.CppExtension
    cuda_sources = sorted(glob.glob("fairseq/csrc/cuda/*.cu") + glob.glob("fairseq/csrc/cuda/*.cpp"))
    if cuda_sources and torch.version.cuda and cpp_extension.CUDA_HOME:
        kind, sources = cpp_extension.CUDAExtension, sources + cuda_sources
    extension = kind(
        "fairseq.ops._torch", sources, extra_compile_args=flags, extra_link_args=["-fopenmp"], optional=True
    )
    return [extension], cpp_extension.BuildExtension


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
            plain = [extension for extension in wanted if extension.name == "fairseq.ops._data"]
            rest = [extension for extension in wanted if extension not in plain]
            self.extensions = plain
            build_ext.build_extensions(self)
            if rest:
                try:
                    self.extensions = rest
                    super().build_extensions()
                except Exception as error:
                    warn(f"tensor operators are not built: {error}")
            self.extensions = wanted

    return {"ext_modules": [data_extension(), *extensions], "cmdclass": {"build_ext": build_optional}}


setup(**commands_and_extensions())
