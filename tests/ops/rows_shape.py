"""Rows: data movement, pools, means, interpolation, softmax, argmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from ops.rows import exact, function, layer, resized
from torch import Tensor, nn

aten = torch.ops.aten
CAT, SLICE, SPLIT, PAD = aten.cat.default, aten.slice.Tensor, aten.split_with_sizes.default, aten.constant_pad_nd.default
MAX, AVG, ADAPTIVE, MEAN = aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim
NEAREST, BILINEAR = aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec
UNFOLD = aten.unfold.default
PICTURE = (1, 4, 6, 8)


class CatConstant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("constant", torch.rand(1, 2, 6, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.constant], 1)


class Concatenated(nn.Module):
    """Two branches of different range."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.relu(self.a(x)), self.b(x) * 3], 1)


def written(x: Tensor, place: tuple, value: Tensor | float) -> Tensor:
    """A copy of `x` with other values in one place."""
    x = x.clone()
    x[place] = value
    return x


def windows(x: Tensor, size: tuple[int, int, int]) -> Tensor:
    """A video [N, D, H, W, C] in windows, as video transformers make them: eight axes."""
    n, *whole, c = x.shape
    parts = [d for length, w in zip(whole, size, strict=True) for d in (length // w, w)]
    return x.reshape(n, *parts, c).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, size[0] * size[1] * size[2], c)


def from_windows(x: Tensor) -> Tensor:
    return x.reshape(2, 2, 2, 3, 2, 2, 2, 3).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(2, 4, 4, 6, 3)


def high_rank(x: Tensor) -> Tensor:
    """Each way to move parts of seven axes."""
    x = torch.cat([x.unsqueeze(3), x.unsqueeze(3)], 3).flip(0, 2)[:, :, 1:].expand(2, 2, 2, 2, 2, 2, 2)
    return F.pad(x.repeat(1, 2, 1, 1, 1, 1, 2), (0, 1, 1, 0)).select(2, 1)[..., ::2].index_select(1, torch.tensor([3, 1])).flatten(2)


class Flipped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1, 3)


MOVEMENT = exact(
    function("cat", CAT, lambda a, b: torch.cat([a, b], 1), PICTURE, (1, 3, 6, 8)),
    function("cat_scales", CAT, lambda a, b: torch.cat([a, b * 5, a], -1), PICTURE, PICTURE),
    layer("cat_constant", CAT, CatConstant, PICTURE),
    layer("cat_branches", CAT, Concatenated, PICTURE),
    function("cat_rank_1", CAT, lambda a, b: torch.cat([a, b]), (20,), (30,)),
    function("write_slice", CAT, lambda a: written(a, (slice(None), slice(1, 3), slice(2, None)), a[:, 1:3, :-2]), PICTURE),
    function("write_number", CAT, lambda a: written(a, (..., slice(-3, None)), 0.5), PICTURE),
    function("write_index", CAT, lambda a: written(a, (slice(None), -1), a[:, 0]), PICTURE),
    function("write_to_zeros", CAT, lambda a: written(torch.zeros_like(a), (slice(None), slice(0, 3)), a[:, 1:]), PICTURE),
    function("pad_circular", CAT, lambda a: F.pad(a, (1, 2, 2, 1), mode="circular"), PICTURE),
    function("stack", aten.unsqueeze.default, lambda a: torch.stack([a, a.flip(0)], -1), (2, 3, 4)),
    function("split", SPLIT, lambda a: torch.split(a, 3, dim=-1), PICTURE),
    function("split_sizes", SPLIT, lambda a: torch.split(a, [1, 3], dim=1), PICTURE),
    function("chunk", SPLIT, lambda a: torch.chunk(a, 2, 1), PICTURE),
    function("split_relu", SPLIT, lambda a: [torch.relu(p) for p in torch.chunk(a, 2, 1)], PICTURE),
    function("slice", SLICE, lambda a: a[:, 1:3, 2:], PICTURE),
    function("slice_steps", SLICE, lambda a: a[:, :, ::2, 1::3], PICTURE),
    function("slice_negative", SLICE, lambda a: a[..., -5:-1], PICTURE),
    function("slice_past_end", SLICE, lambda a: a[:, 2:100], PICTURE),
    function("slice_rank_1", SLICE, lambda a: a[5:45:4], (50,)),
    function("slice_rank_5", SLICE, lambda a: a[:, :, ::2], (1, 2, 3, 4, 5)),
    function("select", aten.select.int, lambda a: a[:, 2], PICTURE),
    function("select_negative", aten.select.int, lambda a: a[..., -1], PICTURE),
    function("pad", PAD, lambda a: F.pad(a, (1, 2, 0, 3)), PICTURE),
    function("pad_value", PAD, lambda a: F.pad(a, (1, 0), value=0.75), PICTURE),
    function("pad_value_outside", PAD, lambda a: F.pad(a, (1, 0), value=9.0), PICTURE),
    function("pad_negative", PAD, lambda a: F.pad(a, (-1, 2, 1, -2)), PICTURE),
    function("pad_channels", PAD, lambda a: F.pad(a, (0, 0, 0, 0, 1, 2)), PICTURE),
    function("pad_reflect", aten.reflection_pad2d.default, lambda a: F.pad(a, (1, 3, 2, 0), mode="reflect"), PICTURE),
    function("pad_replicate", aten.replication_pad2d.default, lambda a: F.pad(a, (1, 3, 2, 0), mode="replicate"), PICTURE),
    function("pad_reflect_1d", aten.reflection_pad1d.default, lambda a: F.pad(a, (2, 1), mode="reflect"), (2, 3, 9)),
    function("pad_replicate_1d", aten.replication_pad1d.default, lambda a: F.pad(a, (2, 1), mode="replicate"), (2, 3, 9)),
    function("pad_3d", PAD, lambda a: F.pad(a, (2, 1)), (2, 3, 9)),
    layer("pad_of_conv", PAD, lambda: nn.Sequential(nn.Conv2d(4, 3, 1), nn.ConstantPad2d(1, 0.5)), PICTURE),
    layer("pixel_shuffle", aten.pixel_shuffle.default, lambda: nn.PixelShuffle(2), (2, 8, 3, 5)),
    layer("pixel_unshuffle", aten.pixel_unshuffle.default, lambda: nn.PixelUnshuffle(3), (2, 2, 6, 9)),
    layer("pixel_unshuffle_unbatched", aten.pixel_unshuffle.default, lambda: nn.PixelUnshuffle(2), (2, 4, 6)),
    layer("pixel_shuffle_unbatched", aten.pixel_shuffle.default, lambda: nn.PixelShuffle(3), (9, 3, 5)),
    layer("conv_pixel_shuffle", aten.pixel_shuffle.default, lambda: nn.Sequential(nn.Conv2d(4, 8, 1), nn.PixelShuffle(2)), PICTURE),
    layer("channel_shuffle", aten.reshape.default, lambda: nn.ChannelShuffle(2), PICTURE),
    function("view", aten.reshape.default, lambda a: a.view(2, -1), PICTURE),
    function("reshape", aten.reshape.default, lambda a: a.transpose(1, 3).reshape(8, 24), PICTURE),
    layer("flatten", aten.reshape.default, nn.Flatten, PICTURE),
    layer("conv_flatten_linear", aten.reshape.default, lambda: nn.Sequential(nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(48, 30)), PICTURE),
    function("permute", aten.permute.default, lambda a: a.permute(0, 2, -1, 1), PICTURE),
    function("permute_rank_5", aten.permute.default, lambda a: a.permute(4, 0, 3, 1, 2), (1, 2, 3, 4, 5)),
    layer("conv_permute", aten.permute.default, lambda: nn.Sequential(nn.Conv2d(4, 3, 1), Permuted(0, 2, 3, 1), nn.Linear(3, 2)), PICTURE),
    function("t_matrix", aten.t.default, lambda a: aten.t(a), (4, 5)),
    function("t_vector", aten.t.default, lambda a: aten.t(a), (30,)),
    function("transpose", aten.transpose.int, lambda a: a.transpose(-1, 1), PICTURE),
    function("squeeze", aten.squeeze.default, torch.squeeze, (1, 4, 1, 8)),
    function("squeeze_dims", aten.squeeze.dims, lambda a: a.squeeze((0, 2, 3)), (1, 4, 1, 8)),
    function("squeeze_dim", aten.squeeze.dim, lambda a: a.squeeze(-2), (1, 4, 1, 8)),
    function("unsqueeze", aten.unsqueeze.default, lambda a: a.unsqueeze(-1).unsqueeze(0), (3, 4)),
    function("expand", aten.expand.default, lambda a: a.expand(2, 4, -1), (4, 5)),
    function("expand_channels", aten.expand.default, lambda a: a.expand(-1, 3, -1, -1), (1, 1, 4, 5)),
    function("repeat", aten.repeat.default, lambda a: a.repeat(2, 1, 3), (4, 5)),
    function("tile", aten.repeat.default, lambda a: a.tile(2, 1), (3, 8)),
    function("repeat_interleave", aten.expand.default, lambda a: a.repeat_interleave(3, 1), PICTURE),
    function("unflatten", aten.reshape.default, lambda a: a.unflatten(1, (2, 2)), PICTURE),
    function("movedim", aten.permute.default, lambda a: a.movedim((1, 2), (-1, 0)), PICTURE),
    function("swapaxes", aten.transpose.int, lambda a: a.swapaxes(1, 2), PICTURE),
    function("unbind", SLICE, lambda a: a.unbind(1), (1, 3, 6, 8)),
    function("tensor_split", SLICE, lambda a: a.tensor_split(3, -1), PICTURE),
    function("hstack", CAT, lambda a, b: torch.hstack([a, b]), (3, 4), (3, 5)),
    function("dstack", CAT, lambda a, b: torch.dstack([a, b]), (4, 6), (4, 6)),
    function("block_diag", CAT, torch.block_diag, (4, 5), (2, 3)),
    function("meshgrid", aten.expand.default, lambda a, b: torch.meshgrid(a, b, indexing="ij"), (20,), (21,)),
    function("cat_with_empty", CAT, lambda a: torch.cat([torch.zeros(0), a, torch.zeros(0, 4, 6, 8)]), PICTURE),
    function("cat_many", CAT, lambda a: torch.cat([a[:, i % 4] + i for i in range(70)], 1), (1, 4, 2, 2)),
    function("write_steps", CAT, lambda a: written(a, (slice(None), slice(None), slice(1, None, 2)), a[:, :, :3]), PICTURE),
    function("slice_scatter", CAT, lambda a, b: torch.slice_scatter(a, b, -1, 1, 8, 3), PICTURE, (1, 4, 6, 3)),
    function("select_scatter", CAT, lambda a, b: torch.select_scatter(a, b, 1, -2), PICTURE, (1, 6, 8)),
    function("flip", aten.flip.default, lambda a: a.flip(1, -1), PICTURE),
    function("rot90", aten.flip.default, lambda a: a.rot90(1, (2, 3)), PICTURE),
    layer("flip_of_conv", aten.flip.default, lambda: nn.Sequential(nn.Conv2d(4, 3, 1), Flipped(), nn.Conv2d(3, 2, 1)), PICTURE),
    function("diagonal", SLICE, lambda a: a.diagonal(0, 1, 2), (3, 5, 6)),
    function("diagonal_below", SLICE, lambda a: a.diagonal(-1, -1, 0), (6, 3, 5)),
    function("diag", SLICE, torch.diag, (20, 20)),
    function("diag_embed", aten.where.self, lambda a: torch.diag_embed(a, 1), (4, 6)),
    function("diagonal_scatter", aten.where.self, torch.diagonal_scatter, (6, 6), (6,)),
    function("as_strided_view", aten.reshape.default, lambda a: torch.as_strided(a, (8, 24), (24, 1)), PICTURE),
    function("as_strided", aten.index_select.default, lambda a: torch.as_strided(a, (5, 4), (6, 2), 3), (4, 9)),
    function("unfold", UNFOLD, lambda a: a.unfold(2, 3, 2), PICTURE),
    function("unfold_overlapping", UNFOLD, lambda a: a.unfold(1, 7, 2), (2, 30)),
    function("unfold_apart", UNFOLD, lambda a: a.unfold(0, 2, 3), (20, 3)),
    function("unfold_patches", UNFOLD, lambda a: a.unfold(2, 2, 2).unfold(3, 4, 4), PICTURE),
    function("im2col", UNFOLD, lambda a: F.unfold(a, 3, dilation=(1, 2), padding=(1, 2), stride=(2, 1)), PICTURE),
    function("im2col_patches", UNFOLD, lambda a: F.unfold(a, 2, stride=2), (2, 3, 6, 8)),
    function("col2im_patches", aten.reshape.default, lambda a: F.fold(a, (5, 8), 2, stride=2), (2, 12, 8)),
    function("col2im", aten.add.Tensor, lambda a: F.fold(a, (5, 6), (3, 2), padding=(1, 0), stride=(2, 1)), (2, 12, 15)),
    function("rank_7", aten.permute.default, lambda a: windows(a, (2, 2, 2)), (1, 4, 4, 6, 3)),
    function("rank_8", aten.permute.default, lambda a: windows(a, (2, 2, 2)), (2, 4, 4, 6, 3)),
    function("rank_8_back", aten.permute.default, from_windows, (24, 8, 3)),
    function("rank_7_parts", SLICE, lambda a: high_rank(a), (2, 2, 3, 2, 2, 2)),
)


class Permuted(nn.Module):
    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)


POOLS = (
    layer("max_pool", MAX, lambda: nn.MaxPool2d(2), (2, 4, 6, 8)),
    layer("max_pool_padding", MAX, lambda: nn.MaxPool2d(3, stride=2, padding=1), (1, 4, 7, 8)),
    layer("max_pool_ceil", MAX, lambda: nn.MaxPool2d((2, 3), stride=(2, 3), ceil_mode=True), (1, 4, 7, 7)),
    layer("max_pool_ceil_padding", MAX, lambda: nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), (1, 4, 6, 8)),
    layer("max_pool_unbatched", MAX, lambda: nn.MaxPool2d(2), (4, 6, 8)),
    layer("max_pool_1d", aten.max_pool1d.default, lambda: nn.MaxPool1d(3, stride=2, padding=1, ceil_mode=True), (2, 4, 10)),
    layer("conv_max_pool", MAX, lambda: nn.Sequential(nn.Conv2d(4, 3, 3), nn.ReLU(), nn.MaxPool2d(2)), PICTURE),
    layer("avg_pool", AVG, lambda: nn.AvgPool2d(2), (2, 4, 6, 8)),
    layer("avg_pool_counted", AVG, lambda: nn.AvgPool2d(3, stride=2, padding=1), (1, 4, 7, 8)),
    layer("avg_pool_not_counted", AVG, lambda: nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False), (1, 4, 7, 8)),
    layer("avg_pool_ceil", AVG, lambda: nn.AvgPool2d((2, 3), stride=(2, 3), ceil_mode=True), (1, 4, 7, 7)),
    layer("avg_pool_ceil_counted", AVG, lambda: nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True), (1, 4, 6, 8)),
    layer("avg_pool_divisor", AVG, lambda: nn.AvgPool2d(2, divisor_override=3), PICTURE),
    layer("avg_pool_divisor_padding", AVG, lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, divisor_override=7), PICTURE),
    layer("avg_pool_unbatched", AVG, lambda: nn.AvgPool2d(2), (4, 6, 8)),
    layer("avg_pool_1d", AVG, lambda: nn.AvgPool1d(3, stride=2, padding=1), (2, 4, 10)),
    layer("adaptive_one", ADAPTIVE, lambda: nn.AdaptiveAvgPool2d(1), (2, 24, 7, 8)),
    layer("adaptive_dividing", ADAPTIVE, lambda: nn.AdaptiveAvgPool2d((3, 4)), (1, 4, 6, 8)),
    layer("adaptive_uneven", ADAPTIVE, lambda: nn.AdaptiveAvgPool2d((4, 3)), (1, 4, 6, 8)),
    layer("adaptive_larger", ADAPTIVE, lambda: nn.AdaptiveAvgPool2d((5, 7)), (1, 4, 3, 4)),
    layer("adaptive_one_axis", ADAPTIVE, lambda: nn.AdaptiveAvgPool2d((None, 1)), (1, 4, 6, 8)),
    layer("adaptive_unbatched", ADAPTIVE, lambda: nn.AdaptiveAvgPool2d((3, 3)), (4, 6, 8)),
    layer("adaptive_1d", ADAPTIVE, lambda: nn.AdaptiveAvgPool1d(4), (2, 3, 10)),
    layer("adaptive_1d_one", ADAPTIVE, lambda: nn.AdaptiveAvgPool1d(1), (2, 24, 10)),
    layer("adaptive_max_uneven", aten.adaptive_max_pool2d.default, lambda: nn.AdaptiveMaxPool2d((4, 3)), (1, 4, 6, 8)),
    layer("adaptive_max_one", aten.adaptive_max_pool2d.default, lambda: nn.AdaptiveMaxPool2d(1), (2, 4, 6, 8)),
    layer("adaptive_max_1d", aten.adaptive_max_pool2d.default, lambda: nn.AdaptiveMaxPool1d(4), (2, 3, 10)),
    function("adaptive_raw", aten._adaptive_avg_pool2d.default, lambda a: aten._adaptive_avg_pool2d(a, [2, 2]), PICTURE),
    function("mean", MEAN, lambda a: a.mean((2, 3)), (2, 24, 6, 8)),
    function("mean_keepdim", MEAN, lambda a: a.mean(1, keepdim=True), PICTURE),
    function("mean_some", MEAN, lambda a: a.mean((0, -1)), (2, 3, 4, 5)),
    function("mean_all", aten.mean.default, torch.mean, PICTURE, span=(0.0, 1.0)),
    function("mean_relu", MEAN, lambda a: torch.relu(a.mean(2)), PICTURE),
    function("sum", aten.sum.dim_IntList, lambda a: a.sum((1, 2)), PICTURE),
    function("sum_keepdim", aten.sum.dim_IntList, lambda a: a.sum(-1, keepdim=True), (1, 2, 3, 4, 5)),
)


class NearestWide(nn.Module):
    """Interpolation of a value that arithmetic reads."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.conv, self.last, self.options = nn.Conv2d(4, 3, 1), nn.Conv2d(3, 2, 1), options

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.interpolate(self.conv(x), **self.options) + 0.25)  # type: ignore[arg-type]


RESIZES = (
    resized("nearest_2", NEAREST, (2, 3, 4, 5), scale_factor=2),
    resized("nearest_3", NEAREST, PICTURE, scale_factor=3),
    resized("nearest_3_by_2", NEAREST, PICTURE, scale_factor=1.5),
    resized("nearest_4_by_3", NEAREST, PICTURE, size=(8, 11)),
    resized("nearest_half", NEAREST, PICTURE, scale_factor=0.5),
    resized("nearest_mixed", NEAREST, PICTURE, scale_factor=(0.7, 2.3)),
    resized("nearest_1d", aten.upsample_nearest1d.vec, (2, 3, 7), scale_factor=2),
    layer("nearest_wide", NEAREST, lambda: NearestWide(scale_factor=2), PICTURE),
    layer("nearest_wide_uneven", NEAREST, lambda: NearestWide(size=(9, 5)), PICTURE),
    *(
        resized(f"bilinear_{name}{'_corners' if corners else ''}", BILINEAR, PICTURE, mode="bilinear", align_corners=corners, **options)
        for corners in (False, True)
        for name, options in {
            "2": {"scale_factor": 2},
            "3": {"scale_factor": (3, 1)},
            "3_by_2": {"scale_factor": 1.5},
            "4_by_3": {"size": (8, 10)},
            "5_by_4": {"size": (7, 10)},
            "half": {"scale_factor": 0.5},
            "2_by_3": {"size": (4, 5)},
        }.items()
    ),
    resized("bilinear_to_one", BILINEAR, PICTURE, mode="bilinear", align_corners=True, size=(1, 5)),
    resized("bilinear_from_one", BILINEAR, (1, 3, 1, 6), mode="bilinear", align_corners=True, size=(4, 6)),
    resized("bilinear_recomputed", BILINEAR, PICTURE, mode="bilinear", scale_factor=1.4, recompute_scale_factor=True),
    resized("bilinear_1d", aten.upsample_linear1d.vec, (2, 3, 7), mode="linear", scale_factor=2),
    resized("bilinear_1d_corners", aten.upsample_linear1d.vec, (2, 3, 7), mode="linear", size=10, align_corners=True),
    layer("conv_bilinear", BILINEAR, lambda: nn.Sequential(nn.Conv2d(4, 3, 3), nn.UpsamplingBilinear2d(scale_factor=2)), PICTURE),
)

SOFTMAX, ARGMAX = aten._softmax.default, aten.argmax.default
CHOICES = (
    function("softmax", SOFTMAX, lambda a: a.softmax(-1), (6, 10), span=(-4.0, 4.0)),
    function("softmax_channels", SOFTMAX, lambda a: a.softmax(1), (2, 5, 3, 4), span=(-4.0, 4.0)),
    function(
        "softmax_long", SOFTMAX, lambda a: a.softmax(-1), (2, 1500), span=(-4.0, 8.0), decibels=(("8a8w", 8.0), ("16a8w", 45.0))
    ),  # the scale holds 1.0, the largest is 0.005
    function("softmax_rank_1", SOFTMAX, lambda a: a.softmax(0), (20,), span=(-4.0, 4.0)),
    function("softmax_rank_5", SOFTMAX, lambda a: a.softmax(2), (1, 2, 6, 2, 3), span=(-4.0, 4.0)),
    function(
        "softmax_peaked", SOFTMAX, lambda a: a.softmax(-1), (12, 10), span=(-40.0, 40.0), decibels=(("8a8w", 25.0),)
    ),  # the input has steps of 0.3
    layer("linear_softmax", SOFTMAX, lambda: nn.Sequential(nn.Linear(8, 10), nn.Softmax(-1)), (6, 8), span=(-4.0, 4.0)),
    function("softmin", SOFTMAX, lambda a: F.softmin(a, 1), (6, 10), span=(-4.0, 4.0)),
    function("argmax", ARGMAX, lambda a: a.argmax(1), PICTURE),
    function("argmax_keepdim", ARGMAX, lambda a: a.argmax(-2, keepdim=True), PICTURE),
    function("argmax_all", ARGMAX, torch.argmax, (5, 7)),
    layer("linear_argmax", ARGMAX, lambda: nn.Sequential(nn.Linear(8, 10), Argmax()), (6, 8)),
)


class Argmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(-1)
