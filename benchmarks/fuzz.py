"""Damaged `.tosa` and `.vgf` files, by the hundred thousand: none may crash, hang or exhaust the readers.

    python benchmarks/fuzz.py                      200,000 files
    python benchmarks/fuzz.py --files 5000 --seed 9

Each process reads its share with 2 GiB of address space (`tests/mutations.py` has the damages). Prints one line of JSON;
the exit code says whether every file was read or refused with one error.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
SHARE = 20_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path[1:])])}
    outcomes, problems, slowest, start = Counter[str](), [], 0.0, time.time()
    for first in range(0, arguments.files, SHARE):
        count = min(SHARE, arguments.files - first)
        command = [sys.executable, str(TESTS / "mutations.py"), str(arguments.seed * 1_000_000 + first), str(count), "2"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            problems.append(f"share {first}: the process ended with {done.returncode}: {done.stderr[-2000:]}")
            continue
        report = json.loads(done.stdout.splitlines()[-1])
        outcomes.update(report["outcomes"])
        problems += report["problems"]
        slowest = max(slowest, report["slowest"])
        print(f"{first + count} of {arguments.files} files, {len(problems)} problems", file=sys.stderr)
    seconds = round(time.time() - start)
    print(json.dumps({"files": arguments.files, **outcomes, "slowest_s": slowest, "seconds": seconds, "problems": problems}))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
