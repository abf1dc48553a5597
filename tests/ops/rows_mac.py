"""Rows: convolutions, linear layers, matrix products, batch norm."""

from __future__ import annotations

import torch
from ops.rows import function, layer
from torch import nn

aten = torch.ops.aten
CONV, LINEAR, NORM = aten.convolution.default, aten.linear.default, aten.batch_norm.default

CONVOLUTIONS = (
    layer("conv2d", CONV, lambda: nn.Conv2d(3, 5, 3), (2, 3, 8, 9)),
    layer("conv2d_no_bias", CONV, lambda: nn.Conv2d(3, 5, (1, 3), bias=False), (1, 3, 5, 6)),
    layer("conv2d_padding", CONV, lambda: nn.Conv2d(3, 4, 3, padding=(2, 1)), (1, 3, 5, 6)),
    layer("conv2d_same", CONV, lambda: nn.Conv2d(3, 4, (4, 2), padding="same", dilation=(1, 3)), (1, 3, 7, 8)),
    layer("conv2d_valid", CONV, lambda: nn.Conv2d(3, 4, 2, padding="valid"), (1, 3, 4, 4)),
    layer("conv2d_asymmetric", CONV, lambda: nn.Sequential(nn.ZeroPad2d((0, 2, 1, 0)), nn.Conv2d(3, 4, 3)), (1, 3, 5, 6)),
    layer("conv2d_remainder", CONV, lambda: nn.Conv2d(3, 4, 3, stride=(2, 3), padding=1), (1, 3, 8, 9)),
    layer("conv2d_remainder_of_input", CONV, lambda: nn.Conv2d(3, 4, 2, stride=3), (1, 3, 7, 6)),
    layer("conv2d_dilation", CONV, lambda: nn.Conv2d(3, 4, 3, dilation=(2, 1), padding=2), (1, 3, 7, 6)),
    layer("conv2d_groups", CONV, lambda: nn.Conv2d(4, 6, 3, groups=2), (1, 4, 5, 6)),
    layer("conv2d_depthwise", CONV, lambda: nn.Conv2d(4, 4, 3, groups=4, stride=2, padding=1), (1, 4, 8, 7)),
    layer("conv2d_multiplier", CONV, lambda: nn.Conv2d(3, 9, 3, groups=3, dilation=2), (1, 3, 8, 7)),
    layer("conv2d_unbatched", CONV, lambda: nn.Conv2d(3, 4, 3), (3, 5, 6)),
    layer("conv2d_relu", CONV, lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), (1, 3, 5, 6)),
    layer("conv2d_relu6", CONV, lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6()), (1, 3, 5, 6), span=(-20.0, 20.0)),
    layer("conv1d", CONV, lambda: nn.Conv1d(4, 6, 3), (2, 4, 9)),
    layer("conv1d_same", CONV, lambda: nn.Conv1d(4, 6, 4, padding="same"), (1, 4, 9)),
    layer("conv1d_strided", CONV, lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2), (1, 4, 10)),
    layer("conv1d_depthwise", CONV, lambda: nn.Conv1d(4, 8, 3, groups=4), (1, 4, 9)),
    layer("conv1d_groups_relu", CONV, lambda: nn.Sequential(nn.Conv1d(4, 6, 3, groups=2), nn.ReLU()), (1, 4, 9)),
    layer("conv1d_unbatched", CONV, lambda: nn.Conv1d(4, 6, 3), (4, 9)),
    layer("conv_stack", CONV, lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)), (1, 3, 6, 6)),
)

TRANSPOSED = (
    layer("transposed2d", CONV, lambda: nn.ConvTranspose2d(3, 5, 3), (1, 3, 4, 5)),
    layer("transposed2d_strided", CONV, lambda: nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1), (2, 3, 4, 5)),
    layer("transposed2d_output_padding", CONV, lambda: nn.ConvTranspose2d(3, 4, 3, stride=(2, 3), output_padding=(1, 2)), (1, 3, 4, 5)),
    layer("transposed2d_groups", CONV, lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (1, 4, 4, 5)),
    layer("transposed2d_depthwise", CONV, lambda: nn.ConvTranspose2d(4, 4, 3, groups=4, stride=2, bias=False), (1, 4, 4, 5)),
    layer("transposed2d_dilation", CONV, lambda: nn.ConvTranspose2d(3, 4, (3, 2), dilation=(2, 3), padding=1), (1, 3, 4, 5)),
    layer("transposed2d_small_stride", CONV, lambda: nn.ConvTranspose2d(3, 4, 2, stride=3), (1, 3, 4, 5)),
    layer("transposed2d_padding_past_kernel", CONV, lambda: nn.ConvTranspose2d(3, 4, 2, stride=2, padding=3), (1, 3, 6, 7)),
    layer("transposed2d_padding_of_kernel", CONV, lambda: nn.ConvTranspose2d(4, 4, 2, padding=2, groups=2), (1, 4, 6, 7)),
    layer("transposed2d_relu", CONV, lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.ReLU()), (1, 3, 4, 5)),
    layer("transposed1d", CONV, lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), (1, 4, 7)),
    layer("transposed1d_groups", CONV, lambda: nn.ConvTranspose1d(4, 6, 3, groups=2, dilation=2), (1, 4, 7)),
    layer("transposed1d_padding_past_kernel", CONV, lambda: nn.ConvTranspose1d(4, 6, 1, padding=2), (1, 4, 9)),
)

PRODUCTS = (
    layer("linear_1d", LINEAR, lambda: nn.Linear(24, 40), (24,)),
    layer("linear_2d", LINEAR, lambda: nn.Linear(8, 6), (5, 8)),
    layer("linear_3d", LINEAR, lambda: nn.Linear(8, 6, bias=False), (2, 5, 8)),
    layer("linear_4d", LINEAR, lambda: nn.Linear(8, 6), (2, 3, 4, 8)),
    layer("linear_one_output", LINEAR, lambda: nn.Linear(16, 1), (20, 16)),
    layer("linear_relu", LINEAR, lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6)), (5, 8)),
    function("mm", aten.mm.default, torch.mm, (5, 8), (8, 6)),
    function("bmm", aten.bmm.default, torch.bmm, (3, 5, 8), (3, 8, 6)),
    function("matmul_4d", aten.bmm.default, torch.matmul, (2, 3, 5, 8), (2, 3, 8, 6)),
    function("mm_relu", aten.mm.default, lambda a, b: torch.relu(a @ b), (5, 8), (8, 6)),
    function("mm_transposed", aten.mm.default, lambda a, b: a @ b.T, (5, 8), (6, 8)),
    layer("norm_1d", NORM, lambda: nn.BatchNorm1d(6), (20, 6)),
    layer("norm_1d_sequence", NORM, lambda: nn.BatchNorm1d(6), (2, 6, 9)),
    layer("norm_2d", NORM, lambda: nn.BatchNorm2d(6), (2, 6, 5, 4)),
    layer("norm_2d_plain", NORM, lambda: nn.BatchNorm2d(6, affine=True, eps=0.1), (1, 6, 5, 4)),
    layer("norm_2d_relu", NORM, lambda: nn.Sequential(nn.BatchNorm2d(6), nn.ReLU()), (1, 6, 5, 4)),
    layer("norm_before_conv", NORM, lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3)), (1, 3, 6, 6)),
    layer("norm_folded", CONV, lambda: nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU()), (1, 3, 6, 6)),
    layer("norm_folded_1d", CONV, lambda: nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6)), (1, 3, 9)),
    layer("norm_folded_linear", LINEAR, lambda: nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6)), (9, 8)),
    layer("norm_folded_transposed", CONV, lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (1, 4, 5, 4)),
)
