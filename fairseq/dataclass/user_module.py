"""``--user-dir``: import a directory of plugins once per process."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from fairseq.errors import ConfigError, DataNotFoundError
from fairseq.registry import loading_plugin

_imported: dict[str, Path] = {}


def import_user_module(args: Any) -> None:
    """Import the plugin directory ``args.user_dir`` (of a Namespace or of ``cfg.common``); nothing if it is None.

    A relative path is looked for from here, then in the ``fairseq`` package, then beside it. The directory becomes a
    top-level module of its own name, and the files in its ``tasks`` and ``models`` folders are imported one by one.
    Raises DataNotFoundError (a FileNotFoundError) or, when another module of that name exists, ImportError.
    """
    user_dir = getattr(args, "user_dir", None)
    if user_dir is None:
        return
    path = _find(str(user_dir))
    if _imported.get(path.name) == path:
        return
    if path.name in sys.modules:
        old = getattr(sys.modules[path.name], "__file__", None)
        if old is None or Path(old).resolve().parent != path:
            raise ImportError(
                f"cannot import the user directory {path}: a module called {path.name!r} is already imported "
                f"from {old or 'elsewhere'}; rename the directory"
            )
    _imported[path.name] = path
    sys.path.insert(0, str(path.parent))
    try:
        with loading_plugin(path.name):
            importlib.import_module(path.name)
            for folder in ("tasks", "models"):
                if (path / folder / "__init__.py").exists():
                    _import_files(path, folder)
    except BaseException:
        del _imported[path.name]
        raise
    finally:
        sys.path.remove(str(path.parent))
        sys.path.append(str(path.parent))


def _find(user_dir: str) -> Path:
    package = Path(__file__).resolve().parent.parent
    given = Path(user_dir)
    for path in (given, package / given, package.parent / given):
        if path.is_dir():
            return path.resolve()
        if path.with_suffix(".py").is_file() and not path.suffix:
            raise ConfigError(f"common.user_dir must be a directory with an __init__.py, but {path} is a single file")
    raise DataNotFoundError(f"user directory {user_dir!r} does not exist (looked from {Path.cwd()} and in {package})")


def _import_files(path: Path, folder: str) -> None:
    for entry in sorted((path / folder).iterdir()):
        name = entry.stem if entry.suffix == ".py" else entry.name
        if name.startswith(("_", ".")) or not (entry.suffix == ".py" or (entry / "__init__.py").exists()):
            continue
        importlib.import_module(f"{path.name}.{folder}.{name}")
