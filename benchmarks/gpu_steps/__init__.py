"""The steps of ``benchmarks/gpu.py``, one module each; ``running.py`` runs them, ``setting.py`` is what they are told."""
