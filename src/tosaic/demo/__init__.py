"""The whole story on real photographs, offline: train, quantize, write, read back, prove, compare."""

from tosaic.demo.main import run_demo

__all__ = ["run_demo"]
