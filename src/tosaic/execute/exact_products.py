"""Which fast products of integers are exact here: each is tried out once, on the worst values."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from tosaic.execute import kernels
from tosaic.execute.handlers import packed

# |sum| <= K * 2^14 fits int32
LONGEST = (1 << 17) - 1


@cache
def is_int8_exact() -> bool:
    """Whether int8 matrix products with int32 sums (`torch._int_mm`) are fast and exact.

    They run at several times the speed of f32 where the processor has instructions that do not saturate in between (VNNI, AMX).
    """
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    if supported is None or not supported():
        return False
    generator = torch.Generator().manual_seed(0)
    for m, k, n in ((1, 64, 16), (7, 100, 33), (64, 257, 48), (3, 1, 32)):
        a = torch.randint(-128, 128, (m, k), dtype=torch.int8, generator=generator)
        b = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=generator)
        for left, right in ((a, b), (a.fill_(-128), b.fill_(-128)), (a.fill_(127), b.fill_(-128)), (a.fill_(127), b.fill_(127))):
            want = left.long() @ right.long().t()
            for operand in (right.t(), right.t().contiguous()):
                if not torch.equal(int8_product(left, operand, torch.empty((m, n), dtype=torch.int32)).long(), want):
                    return False
    return True


def int8_product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """int8 [M,K] x int8 [K,N] into int32 [M,N], where `is_int8_exact`."""
    if right.shape[0] == 1:  # the strides of a transposed column count as those of a row too, and torch takes it for what it is not
        right = torch.empty(right.shape, dtype=right.dtype).copy_(right)
    return torch._int_mm(left, right, out=out)


@cache
def is_f32_exact() -> bool:
    """Whether f32 convolutions of integers sum them up as they are, and not transformed (Winograd, Fourier), which rounds."""
    generator = torch.Generator().manual_seed(0)
    for channels, kernel, stride in ((16, 3, 1), (16, 3, 2), (8, 5, 1)):
        shape = (channels, channels, kernel, kernel)
        x = torch.randint(-128, 128, (1, channels, 32, 32), generator=generator).float().contiguous(memory_format=torch.channels_last)
        w = torch.randint(-128, 128, shape, generator=generator).float().contiguous(memory_format=torch.channels_last)
        for convolve in (F.conv2d, F.conv_transpose2d):
            if not torch.equal(convolve(x, w, None, stride).double(), convolve(x.double(), w.double(), None, stride)):
                return False
    return True


def split16(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int16 as two int8: x = 256 * high + low + 128."""
    high, low = np.empty(x.shape, np.int8), np.empty(x.shape, np.int8)
    kernels.split16(packed(x).reshape(-1), high.reshape(-1), low.reshape(-1))
    return high, low
