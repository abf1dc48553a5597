"""Rows: pools beyond images, and interpolation and sampling beyond RESIZE."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from ops.rows import function, layer, resized
from torch import Tensor, nn

aten = torch.ops.aten
MAX, MAX_3D, AVG_3D = aten.max_pool2d.default, aten.max_pool3d.default, aten.avg_pool3d.default
ADAPTIVE_3D, ADAPTIVE_MAX_3D = aten.adaptive_avg_pool3d.default, aten.adaptive_max_pool3d.default
PICTURE, VOLUME = (1, 4, 9, 11), (1, 3, 6, 7, 8)
# several operators: the mean of powers, a sign, and a root that magnifies what was rounded off small means
ROOT = {"lsb_at_16": 8, "equal_at_16": 0.4, "decibels": (("16a8w", 84.0),)}

VOLUME_POOLS = (
    layer("max_pool_dilated", MAX, lambda: nn.MaxPool2d(3, dilation=2, stride=1), PICTURE),
    layer("max_pool_dilated_strided", MAX, lambda: nn.MaxPool2d((3, 2), dilation=(1, 3), stride=2, padding=1, ceil_mode=True), PICTURE),
    layer("max_pool_dilated_1d", aten.max_pool1d.default, lambda: nn.MaxPool1d(3, dilation=2, stride=2, padding=1), (2, 3, 12)),
    layer("max_pool_1d_unbatched", aten.max_pool1d.default, lambda: nn.MaxPool1d(2), (5, 12)),
    layer("max_pool_3d", MAX_3D, lambda: nn.MaxPool3d(2), (2, 3, 4, 6, 8)),
    layer("max_pool_3d_padding", MAX_3D, lambda: nn.MaxPool3d((3, 2, 3), stride=(2, 1, 2), padding=1), VOLUME),
    layer("max_pool_3d_ceil", MAX_3D, lambda: nn.MaxPool3d(3, stride=2, padding=1, ceil_mode=True), VOLUME),
    layer("max_pool_3d_dilated", MAX_3D, lambda: nn.MaxPool3d(2, stride=(1, 2, 3), dilation=(3, 2, 1)), VOLUME),
    layer("max_pool_3d_unbatched", MAX_3D, lambda: nn.MaxPool3d(2), (3, 4, 4, 4)),
    layer("conv_max_pool_3d", MAX_3D, lambda: nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU(), nn.MaxPool3d(2)), VOLUME),
    layer("avg_pool_3d", AVG_3D, lambda: nn.AvgPool3d(2), (2, 3, 4, 6, 8)),
    layer("avg_pool_3d_padding", AVG_3D, lambda: nn.AvgPool3d(3, stride=2, padding=1), VOLUME),
    layer("avg_pool_3d_not_counted", AVG_3D, lambda: nn.AvgPool3d(3, stride=2, padding=1, count_include_pad=False), VOLUME),
    layer("avg_pool_3d_ceil", AVG_3D, lambda: nn.AvgPool3d((3, 2, 3), stride=(2, 3, 2), padding=(1, 0, 1), ceil_mode=True), VOLUME),
    layer("avg_pool_3d_divisor", AVG_3D, lambda: nn.AvgPool3d(2, stride=1, divisor_override=3), VOLUME),
    layer("avg_pool_3d_one_slice", AVG_3D, lambda: nn.AvgPool3d((1, 2, 3), stride=(2, 2, 1)), VOLUME),
    layer("avg_pool_3d_unbatched", AVG_3D, lambda: nn.AvgPool3d(2), (3, 4, 4, 4)),
    layer("adaptive_3d", ADAPTIVE_3D, lambda: nn.AdaptiveAvgPool3d((4, 3, 5)), VOLUME),
    layer("adaptive_3d_dividing", ADAPTIVE_3D, lambda: nn.AdaptiveAvgPool3d((3, 7, 2)), VOLUME),
    layer("adaptive_3d_one", ADAPTIVE_3D, lambda: nn.AdaptiveAvgPool3d(1), (2, 24, 3, 4, 5)),
    layer("adaptive_3d_unbatched", ADAPTIVE_3D, lambda: nn.AdaptiveAvgPool3d((2, 3, 2)), (3, 4, 4, 4)),
    function("adaptive_3d_raw", aten._adaptive_avg_pool3d.default, lambda a: aten._adaptive_avg_pool3d(a, [2, 3, 5]), VOLUME),
    layer("adaptive_max_3d", ADAPTIVE_MAX_3D, lambda: nn.AdaptiveMaxPool3d((4, 7, 4)), VOLUME),
    layer("lp_pool", aten.avg_pool2d.default, lambda: nn.LPPool2d(2, 3), PICTURE, **ROOT),
    layer("lp_pool_1d", aten.avg_pool2d.default, lambda: nn.LPPool1d(3, 3, ceil_mode=True), (2, 3, 10), span=(0.5, 3.3), **ROOT),
    layer("lp_pool_3d", AVG_3D, lambda: nn.LPPool3d(2, 2), VOLUME, **ROOT),
    layer("adaptive_max_3d_one", ADAPTIVE_MAX_3D, lambda: nn.AdaptiveMaxPool3d(1), (2, 12, 3, 4, 5)),
)


BICUBIC, TRILINEAR, BILINEAR = aten.upsample_bicubic2d.vec, aten.upsample_trilinear3d.vec, aten.upsample_bilinear2d.vec
EXACT, NEAREST_3D = aten._upsample_nearest_exact2d.vec, aten.upsample_nearest3d.vec
LINEAR_AA, CUBIC_AA = aten._upsample_bilinear2d_aa.default, aten._upsample_bicubic2d_aa.default

INTERPOLATIONS = (
    resized("bicubic", BICUBIC, (2, 3, 4, 5), mode="bicubic", scale_factor=2),
    resized("bicubic_corners", BICUBIC, PICTURE, mode="bicubic", size=(13, 7), align_corners=True),
    resized("bicubic_down", BICUBIC, PICTURE, mode="bicubic", scale_factor=(0.4, 0.7)),
    resized("bicubic_recomputed", BICUBIC, PICTURE, mode="bicubic", scale_factor=1.7, recompute_scale_factor=True),
    resized("bilinear_any_ratio", BILINEAR, PICTURE, mode="bilinear", size=(31, 37)),
    resized("bilinear_far_down", BILINEAR, (1, 2, 70, 40), mode="bilinear", size=(3, 2)),
    resized("bilinear_corners_to_one", BILINEAR, PICTURE, mode="bilinear", size=(1, 23), align_corners=True),
    resized("bilinear_corners_from_one", BILINEAR, (1, 3, 1, 6), mode="bilinear", size=(4, 6), align_corners=True),
    resized("linear_any_ratio", aten.upsample_linear1d.vec, (2, 3, 17), mode="linear", size=29),
    resized("trilinear", TRILINEAR, VOLUME, mode="trilinear", scale_factor=2),
    resized("trilinear_corners", TRILINEAR, VOLUME, mode="trilinear", size=(5, 9, 8), align_corners=True),
    resized("bilinear_aa", LINEAR_AA, PICTURE, mode="bilinear", scale_factor=0.4, antialias=True),
    resized("bilinear_aa_size", LINEAR_AA, PICTURE, mode="bilinear", size=(4, 15), antialias=True),
    resized("bilinear_aa_corners", LINEAR_AA, PICTURE, mode="bilinear", size=(4, 5), antialias=True, align_corners=True),
    resized("bicubic_aa", CUBIC_AA, (2, 3, 16, 16), mode="bicubic", scale_factor=0.3, antialias=True),
    resized("area", aten.adaptive_avg_pool2d.default, PICTURE, mode="area", size=(4, 5)),
    resized("area_3d", ADAPTIVE_3D, VOLUME, mode="area", size=(3, 4, 5)),
    resized("nearest_any_ratio", aten.upsample_nearest2d.vec, PICTURE, size=(31, 37)),
    resized("nearest_far_down", aten.upsample_nearest2d.vec, (1, 2, 70, 40), size=(3, 2)),
    resized("nearest_exact", EXACT, PICTURE, mode="nearest-exact", scale_factor=2),
    resized("nearest_exact_uneven", EXACT, PICTURE, mode="nearest-exact", size=(5, 17)),
    resized("nearest_exact_1d", aten._upsample_nearest_exact1d.vec, (2, 3, 12), mode="nearest-exact", scale_factor=0.6),
    resized("nearest_exact_3d", aten._upsample_nearest_exact3d.vec, VOLUME, mode="nearest-exact", scale_factor=1.5),
    resized("nearest_3d", NEAREST_3D, VOLUME, scale_factor=2),
    resized("nearest_3d_uneven", NEAREST_3D, VOLUME, size=(4, 9, 8)),
    *(
        function(f"{name}_of_size", op.default, lambda a, op=op, outs=outs: op.default(a, outs, True), shape)
        for name, op, shape, outs in (
            ("linear", aten.upsample_linear1d, (2, 3, 12), [17]),
            ("trilinear", aten.upsample_trilinear3d, VOLUME, [5, 6, 9]),
        )
    ),
    *(
        function(f"{name}_of_size", op.default, lambda a, op=op, size=size, scales=scales: op.default(a, size, *scales), shape)
        for name, op, shape, size, scales in (
            ("nearest_1d", aten.upsample_nearest1d, (2, 3, 12), [17], [None]),
            ("nearest_2d", aten.upsample_nearest2d, PICTURE, [13, 15], [1.5, 1.4]),
            ("nearest_3d", aten.upsample_nearest3d, VOLUME, [5, 6, 9], []),
            ("nearest_exact_1d", aten._upsample_nearest_exact1d, (2, 3, 12), [17], []),
            ("nearest_exact_2d", aten._upsample_nearest_exact2d, PICTURE, [8, 15], [None, None]),
            ("nearest_exact_3d", aten._upsample_nearest_exact3d, VOLUME, [5, 6, 9], []),
        )
    ),
    function("pad_reflect_3d", aten.reflection_pad3d.default, lambda a: F.pad(a, (1, 3, 2, 0, 1, 1), mode="reflect"), VOLUME),
    function("pad_replicate_3d", aten.replication_pad3d.default, lambda a: F.pad(a, (1, 3, 2, 0, 1, 1), mode="replicate"), VOLUME),
    function("pad_circular_3d", aten.cat.default, lambda a: F.pad(a, (1, 3, 2, 0, 1, 1), mode="circular"), VOLUME),
    layer("conv_bicubic", BICUBIC, lambda: nn.Sequential(nn.Conv2d(4, 3, 3), nn.Upsample(scale_factor=2, mode="bicubic")), PICTURE),
)


class Warped(nn.Module):
    """An image sampled at a regular grid that is moved by a flow: [N, C, H, W] and [N, *outs, dims]."""

    def __init__(self, outs: tuple[int, ...], reach: float = 1.0, **options: object) -> None:
        super().__init__()
        axes = torch.meshgrid(*[torch.linspace(-reach, reach, n) for n in outs], indexing="ij")
        self.register_buffer("base", torch.stack(axes[::-1], -1)[None])
        self.options = options

    def forward(self, x: Tensor, flow: Tensor) -> Tensor:
        return F.grid_sample(x, self.base + 0.1 * flow, **self.options)  # type: ignore[arg-type]


class Transformed(nn.Module):
    """An image under an affine map that the model computes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("still", torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))

    def forward(self, x: Tensor, change: Tensor) -> Tensor:
        grid = F.affine_grid(self.still + 0.05 * change, [1, 4, 7, 6], align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


class Undistorted(nn.Module):
    """An image at positions that are known in advance."""

    def __init__(self, mode: str = "bilinear") -> None:
        super().__init__()
        self.register_buffer("grid", torch.rand(1, 6, 7, 2) * 2.2 - 1.1)
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        return F.grid_sample(x, self.grid, mode=self.mode, align_corners=False)


class Aligned(nn.Module):
    """Features beside those of the middle of the image: wide, and far below what the sums of their layer could be."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(64, 3, 3, padding=1)

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        y = self.features(x)
        return F.grid_sample(y, 0.1 * grid, padding_mode="border", align_corners=True) * y


class Texture(nn.Module):
    """Features of places, from an image that was trained."""

    def __init__(self, mode: str = "bilinear") -> None:
        super().__init__()
        self.image, self.mode = nn.Parameter(torch.randn(1, 4, 8, 8)), mode

    def forward(self, places: Tensor) -> Tensor:
        return F.grid_sample(self.image, places[None, None] * 2 - 1, mode=self.mode, padding_mode="border", align_corners=False)


SAMPLE, SAMPLE_3D = aten.grid_sampler_2d.default, aten.grid_sampler_3d.default
_FLOW = ((2, 3, 9, 11), (2, 6, 7, 2))

SAMPLING = (
    *(
        layer(
            f"sample_{padding}{'_corners' if corners else ''}",
            SAMPLE,
            lambda padding=padding, corners=corners: Warped((6, 7), 1.3, padding_mode=padding, align_corners=corners),
            *_FLOW,
        )
        for padding in ("zeros", "border", "reflection")
        for corners in (False, True)
    ),
    *(
        layer(
            f"sample_nearest_{padding}",
            SAMPLE,
            lambda padding=padding: Warped((6, 7), 1.3, padding_mode=padding, align_corners=padding == "border", mode="nearest"),
            *_FLOW,
            decibels=(("8a8w", 15.0), ("16a8w", 40.0)),  # the rounding of the flow moves some positions to other pixels
        )
        for padding in ("zeros", "border", "reflection")
    ),
    *(
        layer(
            f"sample_bicubic_{padding}{'_corners' if corners else ''}",
            SAMPLE,
            lambda padding=padding, corners=corners: Warped((6, 7), 1.3, padding_mode=padding, align_corners=corners, mode="bicubic"),
            *_FLOW,
            decibels=(("8a8w", 24.0), ("16a8w", 70.0)),  # weights beyond 1 magnify what the rounding of the flow moves
        )
        for padding in ("zeros", "border", "reflection")
        for corners in (False, True)
    ),
    *(
        layer(
            f"sample_bicubic_of_{size}_{padding}",
            SAMPLE,
            lambda padding=padding: Warped((6, 7), 6.0, padding_mode=padding, align_corners=False, mode="bicubic"),
            (2, 3, size, size),
            (2, 6, 7, 2),
            decibels=(("8a8w", 15.0), ("16a8w", 60.0)),
        )
        for size, padding in ((1, "zeros"), (2, "zeros"), (2, "border"))
    ),
    layer("sample_aligned", SAMPLE, Aligned, (1, 64, 7, 7), (1, 7, 7, 2), decibels=(("8a8w", 20.0),)),
    *(
        layer(
            f"sample_texture_{m}", SAMPLE, lambda m=m: Texture(m), (30, 2), span=(-0.1, 1.05), equal_at_16=0.75, decibels=(("8a8w", 24.0),)
        )
        for m in ("bilinear", "bicubic")
    ),
    layer("sample_constant_bicubic", SAMPLE, lambda: Undistorted("bicubic"), PICTURE),
    layer("sample_far", SAMPLE, lambda: Warped((6, 7), 4.0, padding_mode="reflection", align_corners=False), *_FLOW),
    layer("sample_3d", SAMPLE_3D, lambda: Warped((3, 4, 5), 1.1, align_corners=False), (1, 2, 4, 5, 6), (1, 3, 4, 5, 3)),
    layer("sample_constant", SAMPLE, Undistorted, PICTURE),
    layer("sample_constant_nearest", SAMPLE, lambda: Undistorted("nearest"), PICTURE),
    # the grid is a product with constants and a sum of them before the image is read there
    layer("sample_affine", SAMPLE, Transformed, PICTURE, (1, 2, 3), lsb_at_16=2, equal_at_16=0.6),
)
