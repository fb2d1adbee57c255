"""What goes wrong where programs run: each module has its own ``--help``, ``benchmarks/faults.py`` runs all of them.

`kills`: trainings that are killed. `disks`: disks, directories, data and workers that go. `controls`: mistakes that the
comparison of these two has to find. `fuzz`: damaged files. `properties`: files that are made up.
"""
