"""Exact products of int8 matrices with int32 sums.

`torch._int_mm` reads int8 and gives int32 at several times the speed of f32, where the processor has instructions that do
not saturate in between (VNNI, AMX). Whether it is exact here is tried out once, on the worst values.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from tosaic.execute import kernels
from tosaic.execute.handlers import packed

# |sum| <= K * 2^14 fits int32
LONGEST = (1 << 17) - 1


@cache
def is_exact() -> bool:
    """Whether int8 products are fast and exact on this processor."""
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    if supported is None or not supported():
        return False
    generator = torch.Generator().manual_seed(0)
    for m, k, n in ((1, 64, 16), (7, 100, 33), (64, 257, 48)):
        a = torch.randint(-128, 128, (m, k), dtype=torch.int8, generator=generator)
        b = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=generator)
        for left, right in ((a, b), (a.fill_(-128), b.fill_(-128)), (a.fill_(127), b.fill_(-128)), (a.fill_(127), b.fill_(127))):
            want = left.long() @ right.long().t()
            for operand in (right.t(), right.t().contiguous()):
                if not torch.equal(torch._int_mm(left, operand).long(), want):
                    return False
    return True


def split16(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int16 as two int8: x = 256 * high + low + 128."""
    high, low = np.empty(x.shape, np.int8), np.empty(x.shape, np.int8)
    kernels.split16(packed(x).reshape(-1), high.reshape(-1), low.reshape(-1))
    return high, low
