"""Pages that are generated are current."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_operator_page_is_current() -> None:
    done = subprocess.run([sys.executable, "-m", "tosaic.lower.docs"], capture_output=True, text=True, check=True)
    assert done.stdout == (ROOT / "docs" / "ops.md").read_text(), "run python -m tosaic.lower.docs docs/ops.md"
