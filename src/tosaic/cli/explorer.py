"""Google's Model Explorer, which shows a file in the browser through an adapter of Arm's."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from tosaic.errors import ExecuteError

# suffix -> module of the adapter; its package has dashes for underscores
_ADAPTERS = {".vgf": "vgf_adapter_model_explorer", ".tosa": "tosa_adapter_model_explorer"}


def check(path: Path) -> None:
    """Refuse what cannot be shown, before anything slow is done.

    Raises:
        ExecuteError: Model Explorer or the adapter for this kind of file is not installed.
    """
    adapter = _ADAPTERS.get(path.suffix)
    if adapter is None:
        return  # no file of ours: reading it says so
    packages = {"model_explorer": "ai-edge-model-explorer", adapter: adapter.replace("_", "-")}
    missing = [package for module, package in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ExecuteError(f"--open needs {' and '.join(missing)}, not installed", remedy=f"pip install {' '.join(missing)}")


def show(path: Path) -> None:
    """Open a file in Model Explorer, and wait until it is closed.

    Raises:
        ExecuteError: it failed.
    """
    command = [str(Path(sys.executable).parent / "model-explorer"), str(path), f"--extensions={_ADAPTERS[path.suffix]}"]
    try:
        code = subprocess.run(command).returncode
    except OSError as error:
        raise ExecuteError(f"Model Explorer cannot be started: {error.strerror}", remedy="pip install ai-edge-model-explorer") from None
    if code:
        raise ExecuteError(f"Model Explorer ended with exit code {code}")
