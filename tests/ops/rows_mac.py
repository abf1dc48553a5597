"""Rows: convolutions, linear layers, matrix products, batch norm."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from ops.rows import function, layer
from torch import Tensor, nn

from tosaic import operators

aten = torch.ops.aten
CONV, LINEAR, NORM = aten.convolution.default, aten.linear.default, aten.batch_norm.default
MM, BMM = aten.mm.default, aten.bmm.default
VOLUME = (1, 3, 4, 5, 6)
# weights are int8 in each scheme, which rows know of layers only
CONSTANT = COMPUTED = {"decibels": (("8a8w", 28.0), ("16a8w", 36.0))}


class Multiplied(nn.Module):
    """A product with parameters."""

    def __init__(self, product: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.product = product
        self.factors = nn.ParameterList([torch.rand(shape) * 2 - 1 for shape in shapes])

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, *self.factors)


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
    layer("conv3d", CONV, lambda: nn.Conv3d(3, 5, 3), (2, 3, 4, 5, 6)),
    layer("conv3d_strided", CONV, lambda: nn.Conv3d(3, 4, (2, 3, 3), stride=(2, 1, 3), padding=(0, 1, 2), dilation=(1, 2, 1)), VOLUME),
    layer("conv3d_same", CONV, lambda: nn.Conv3d(3, 4, (4, 3, 2), padding="same"), VOLUME),
    layer("conv3d_groups", CONV, lambda: nn.Conv3d(4, 6, 2, groups=2), (1, 4, 4, 4, 5)),
    layer("conv3d_depthwise", CONV, lambda: nn.Conv3d(3, 6, 3, groups=3, padding=1), VOLUME),
    layer("conv3d_depthwise_strided", CONV, lambda: nn.Conv3d(3, 3, 3, 2, groups=3, dilation=(1, 1, 2), bias=False), (1, 3, 8, 7, 9)),
    layer("conv3d_relu", CONV, lambda: nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU(), nn.Conv3d(4, 3, 1)), VOLUME),
    layer("conv3d_unbatched", CONV, lambda: nn.Conv3d(3, 4, 2), (3, 4, 4, 4)),
    function("conv2d_computed_weight", CONV, F.conv2d, (2, 3, 6, 7), (4, 3, 3, 3), **COMPUTED),
    function("conv2d_computed_bias", CONV, F.conv2d, (2, 3, 6, 7), (4, 3, 3, 3), (4,), **COMPUTED),
    function("conv2d_computed_groups", CONV, lambda x, w: F.conv2d(x, w, groups=2), (1, 4, 6, 7), (6, 2, 3, 3), **COMPUTED),
    function("conv2d_computed_depthwise", CONV, lambda x, w: F.conv2d(x, w, groups=4), (1, 4, 6, 7), (8, 1, 3, 3), **COMPUTED),
    function("conv1d_computed_weight", CONV, lambda x, w: F.conv1d(x, w, stride=2, padding=1), (2, 3, 9), (4, 3, 3), **COMPUTED),
    function("conv3d_computed_weight", CONV, F.conv3d, (1, 3, 4, 5, 6), (4, 3, 3, 3, 3), **COMPUTED),
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
    layer("transposed3d", CONV, lambda: nn.ConvTranspose3d(3, 4, 3), (1, 3, 3, 4, 3)),
    layer("transposed3d_strided", CONV, lambda: nn.ConvTranspose3d(3, 4, (2, 4, 3), (2, 2, 3), (0, 1, 2)), (2, 3, 3, 4, 3)),
    layer("transposed3d_output_padding", CONV, lambda: nn.ConvTranspose3d(3, 4, 3, (2, 1, 3), output_padding=(1, 0, 2)), (1, 3, 3, 4, 3)),
    layer("transposed3d_groups", CONV, lambda: nn.ConvTranspose3d(4, 6, 2, groups=2, stride=2, dilation=(1, 2, 1)), (1, 4, 3, 4, 3)),
    layer("transposed3d_padding_past_kernel", CONV, lambda: nn.ConvTranspose3d(3, 4, 2, stride=2, padding=3, bias=False), (1, 3, 6, 7, 6)),
    function("transposed2d_computed_weight", CONV, lambda x, w: F.conv_transpose2d(x, w, stride=2), (1, 3, 4, 5), (3, 4, 3, 3), **COMPUTED),
    layer("transposed1d", CONV, lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), (1, 4, 7)),
    layer("transposed1d_groups", CONV, lambda: nn.ConvTranspose1d(4, 6, 3, groups=2, dilation=2), (1, 4, 7)),
    layer("transposed1d_padding_past_kernel", CONV, lambda: nn.ConvTranspose1d(4, 6, 1, padding=2), (1, 4, 9)),
)

PRODUCTS = (
    layer(
        "per_token_linear",
        operators.per_token_linear,
        # of int8 numbers nothing is rounded, of their products there is
        lambda: Multiplied(lambda x, w: operators.per_token_linear(x * x.flip(-1), w, None, 0.0), (6, 16)),
        (3, 5, 16),
        precisions=("8a8w", "fp32"),  # what it rounds to is int8
    ),
    layer("linear_1d", LINEAR, lambda: nn.Linear(24, 40), (24,)),
    layer("linear_2d", LINEAR, lambda: nn.Linear(8, 6), (5, 8)),
    layer("linear_3d", LINEAR, lambda: nn.Linear(8, 6, bias=False), (2, 5, 8)),
    layer("linear_4d", LINEAR, lambda: nn.Linear(8, 6), (2, 3, 4, 8)),
    layer("linear_one_input", LINEAR, lambda: nn.Linear(1, 7), (20, 1)),
    layer("linear_one_output", LINEAR, lambda: nn.Linear(16, 1), (20, 16)),
    layer("linear_relu", LINEAR, lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6)), (5, 8)),
    function("mm", aten.mm.default, torch.mm, (5, 8), (8, 6)),
    function("bmm", aten.bmm.default, torch.bmm, (3, 5, 8), (3, 8, 6)),
    function("bmm_outer", aten.bmm.default, torch.bmm, (3, 5, 1), (3, 1, 6)),
    function("matmul_4d", aten.bmm.default, torch.matmul, (2, 3, 5, 8), (2, 3, 8, 6)),
    function("mm_relu", aten.mm.default, lambda a, b: torch.relu(a @ b), (5, 8), (8, 6)),
    function("mm_transposed", aten.mm.default, lambda a, b: a @ b.T, (5, 8), (6, 8)),
    function("linear_computed_weight", LINEAR, F.linear, (2, 5, 8), (6, 8)),
    function("linear_computed", LINEAR, F.linear, (2, 5, 8), (6, 8), (6,)),
    layer("mm_constant", LINEAR, lambda: Multiplied(lambda x, w: x @ w, (8, 6)), (2, 5, 8), **CONSTANT),
    layer("mm_constant_first", LINEAR, lambda: Multiplied(lambda x, w: w @ x, (6, 8)), (2, 8, 5), **CONSTANT),
    layer(
        "mm_constant_einsum", LINEAR, lambda: Multiplied(lambda x, w: torch.einsum("nchw,oc->nohw", x, w), (4, 3)), (2, 3, 5, 6), **CONSTANT
    ),
    layer("mm_constant_vector", LINEAR, lambda: Multiplied(lambda x, w: x @ w, (8,)), (3, 5, 8), **CONSTANT),
    layer("mm_constant_bias", LINEAR, lambda: Multiplied(lambda x, w, b: x @ w + b, (8, 6), (6,)), (2, 5, 8), **CONSTANT),
    layer("addmm_constant", LINEAR, lambda: Multiplied(lambda x, w, b: torch.addmm(b, x, w), (8, 6), (6,)), (5, 8), **CONSTANT),
    layer("bmm_constant", BMM, lambda: Multiplied(torch.bmm, (3, 8, 6)), (3, 5, 8)),
    layer("bmm_constant_first", BMM, lambda: Multiplied(lambda x, w: torch.bmm(w, x), (3, 6, 8)), (3, 8, 5)),
    function("mv", MM, torch.mv, (20, 8), (8,)),
    function("dot", aten.sum.dim_IntList, torch.dot, (40,), (40,)),
    function("outer", aten.mul.Tensor, torch.outer, (8,), (7,)),
    function("inner", MM, torch.inner, (5, 8), (7, 8)),
    function("addmm", MM, lambda a, b, c: torch.addmm(a, b, c, beta=0.5, alpha=2), (6,), (5, 8), (8, 6)),
    function("addmv", MM, torch.addmv, (20,), (20, 8), (8,)),
    function("baddbmm", BMM, lambda a, b, c: torch.baddbmm(a, b, c, beta=0.5, alpha=2), (3, 5, 6), (3, 5, 8), (3, 8, 6)),
    function("addbmm", MM, torch.addbmm, (5, 6), (3, 5, 8), (3, 8, 6)),
    function("addr", aten.mul.Tensor, torch.addr, (5, 8), (5,), (8,)),
    function("matmul_batches", BMM, torch.matmul, (2, 3, 5, 8), (3, 8, 6)),
    function("matmul_one_matrix", MM, torch.matmul, (2, 3, 5, 8), (8, 6)),
    function("matmul_one_matrix_first", MM, torch.matmul, (5, 8), (2, 3, 8, 6)),
    function("matmul_vector", MM, torch.matmul, (2, 3, 8), (8,)),
    function("matmul_vector_first", MM, torch.matmul, (8,), (2, 8, 9)),
    function("multi_dot", MM, lambda a, b, c: torch.linalg.multi_dot([a, b, c]), (4, 9), (9, 8), (8, 5)),
    function("tensordot", MM, lambda a, b: torch.tensordot(a, b, dims=2), (5, 3, 4), (3, 4, 6)),
    function("einsum_heads", BMM, lambda a, b: torch.einsum("bhid,bhjd->bhij", a, b), (2, 3, 8, 5), (2, 3, 6, 5)),
    function("einsum_batch", BMM, lambda a, b: torch.einsum("bij,bjk->bik", a, b), (2, 3, 8), (2, 8, 5)),
    function("einsum_relative", BMM, lambda a, b: torch.einsum("bhwc,hkc->bhwk", a, b), (2, 3, 8, 5), (3, 4, 5)),
    function("einsum_outer", aten.mul.Tensor, lambda a, b: torch.einsum("i,j->ij", a, b), (6,), (9,)),
    function("einsum_three", BMM, lambda a, b, c: torch.einsum("bi,ij,bj->b", a, b, c), (24, 3), (3, 4), (24, 4)),
    layer("bilinear", LINEAR, lambda: nn.Bilinear(6, 5, 4), (9, 6), (9, 5)),
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
