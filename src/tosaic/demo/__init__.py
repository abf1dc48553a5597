"""The whole story on real photographs, offline: train, quantize, write, read back, prove, compare."""

import os

# OpenMP threads that wait in a loop hold the cores that others need: on a busy machine with two cores, training takes eight times
# as long. Read once, when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from tosaic.demo.main import run_demo

__all__ = ["run_demo"]
