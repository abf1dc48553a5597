"""What an export of a language model is refused for before anything is loaded."""

from __future__ import annotations

import pytest

from tosaic.errors import InputError, SpecError
from tosaic.llm.settings import Settings
from tosaic.quantization.schemes import Recipe


def test_defaults() -> None:
    for mode, spec in ((None, "TOSA-1.0+FP"), ("vgf_8a8w", "TOSA-1.0+INT")):
        settings = Settings(mode)
        settings.check()
        assert (settings.spec, settings.prefill_chunk, settings.calibration_seq_length) == (spec, 128, 256)
    short = Settings("vgf_8a8w", max_seq_length=64)
    short.check()
    assert (short.prefill_chunk, short.calibration_seq_length) == (64, 64)
    odd = Settings("vgf_8a8w", max_seq_length=300, prefill_chunk=100)
    odd.check()
    assert odd.calibration_seq_length == 200


@pytest.mark.parametrize(
    ("settings", "recipe"),
    [
        (Settings(None), Recipe("fp32")),
        (Settings("vgf_8a8w"), Recipe("8a8w-per-token")),
        (Settings("vgf_8a8w", activation_scales="static"), Recipe("8a8w")),
        (Settings("vgf_16a8w", scope="linear", overrides={"lm_head": "fp32"}), Recipe("16a8w", "linear", {"lm_head": "fp32"})),
    ],
)
def test_recipes(settings: Settings, recipe: Recipe) -> None:
    assert settings.recipe == recipe


INT16 = "TOSA-1.0+INT+int16"

# (settings, kind of error, parts of the message)
REFUSED: list[tuple[Settings, type[Exception], str]] = [
    (Settings("vgf_8w8a"), InputError, r"(?s)unknown quantization mode 'vgf_8w8a'.*did you mean vgf_8a8w\? known are vgf_8a8w, vgf_16a8w"),
    (Settings("vgf_8a8w", "linar"), InputError, r"(?s)unknown quantize scope 'linar'.*did you mean linear\?"),
    (Settings("vgf_8a8w", activation_scales="per_token"), InputError, r"(?s)unknown activation scales 'per_token'.*did you mean per-token"),
    (
        Settings("vgf_8a8w", overrides={"lm_head": "16a4w"}),
        InputError,
        "override 'lm_head' '16a4w': TOSA has 4-bit weights for int8",
    ),
    (Settings(None, overrides={"lm_head": "8a8w"}), InputError, "(?s)overrides without a quantization mode.*--pt2e-quantize vgf_8a8w"),
    (Settings(None, "linear"), InputError, "a quantize scope without a quantization mode"),
    (Settings(None, activation_scales="static"), InputError, "activation scales without a quantization mode"),
    (Settings(None, smoothing=True), InputError, "smoothing without a quantization mode"),
    (Settings(None, rotation=True), InputError, "rotation without a quantization mode"),
    (Settings("vgf_16a8w", spec=INT16, activation_scales="per-token"), InputError, "vgf_16a8w has static activation scales"),
    (Settings("vgf_16a8w"), SpecError, r"(?s)16a8w needs the int16 extension.*use --arm-vgf-compile-spec TOSA-1\.0\+INT\+int16"),
    (Settings("vgf_8a8w", "linear"), SpecError, r"(?s)scope linear needs the FP profile.*--arm-vgf-compile-spec TOSA-1\.0\+INT\+FP"),
    (Settings("vgf_16a8w", "linear"), SpecError, r"(?s)needs the int16 extension and the FP profile.*TOSA-1\.0\+INT\+FP\+int16"),
    (Settings(None, spec="TOSA-1.0+INT"), SpecError, r"(?s)fp32 needs the FP profile.*--arm-vgf-compile-spec TOSA-1\.0\+INT\+FP"),
    (Settings("vgf_8a8w", overrides={"lm_head": "fp32"}), SpecError, "with overrides needs the FP profile"),
    (Settings("vgf_8a8w", spec="TOSA-1.0+INT+int12"), SpecError, "unknown part 'int12'"),
    (Settings("vgf_8a8w", max_seq_length=0), InputError, "max-seq-length is 0, expected at least 1"),
    (Settings("vgf_8a8w", prefill_chunk=-8), InputError, "prefill-chunk is -8"),
    (Settings("vgf_8a8w", calibration_limit=0), InputError, "calibration-limit is 0"),
    (
        Settings("vgf_8a8w", max_seq_length=300),
        InputError,
        "(?s)300 is no multiple of the prefill chunk, 128.*--max-seq-length 384, or",
    ),
    (
        Settings("vgf_8a8w", calibration_seq_length=200),
        InputError,
        "(?s)calibration-seq-length 200 is no multiple.*--calibration-seq-length 256",
    ),
    (Settings("vgf_8a8w", max_seq_length=32, prefill_chunk=64), InputError, "(?s)use --max-seq-length 64, or"),
    (
        Settings("vgf_8a8w", max_seq_length=256, calibration_seq_length=512),
        InputError,
        "(?s)calibration-seq-length 512 is longer than the caches, which hold 256.*--calibration-seq-length 256 or less",
    ),
]


@pytest.mark.parametrize(("settings", "kind", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_refused(settings: Settings, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        settings.check()
