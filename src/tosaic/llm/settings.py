"""What the export of a language model may be asked for, and what is refused before anything is loaded; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tosaic.errors import InputError, check_known
from tosaic.quantization.schemes import SCOPES, Recipe
from tosaic.tosa.spec import Spec

if TYPE_CHECKING:
    from tosaic.llm.architecture import DecoderConfig

# mode, as ExecuTorch names them -> scheme
MODES = {"vgf_8a8w": "8a8w", "vgf_16a8w": "16a8w"}
ACTIVATION_SCALES = ("static", "per-token")
QUANTIZED_SPEC, FLOAT_SPEC = "TOSA-1.0+INT", "TOSA-1.0+FP"
PREFILL_CHUNK, CALIBRATION_SEQ_LENGTH = 128, 256


@dataclass(frozen=True)
class Settings:
    """How a language model is exported.

    Attributes:
        mode: one of `MODES`, None computes in float32.
        scope: "full" quantizes all, "linear" only nn.Linear and what `overrides` names.
        spec: the TOSA specification; "" stands for TOSA-1.0+INT, without a mode for TOSA-1.0+FP.
        max_seq_length: positions that the caches hold.
        prefill_chunk: tokens that one run of the prefill artifact takes; 0 stands for 128, or `max_seq_length` where that is less.
        calibration_limit: samples of text to calibrate on.
        calibration_seq_length: tokens of each, whole chunks; 0 stands for 256, or what is nearest below.
        activation_scales: of what enters linear layers, "static" or "per-token"; None takes what measures best in the mode. With
            static scales in vgf_8a8w, inputs get 16 bits (as two int8 digits) of which few tokens take most of the range in calibration.
        overrides: module path pattern or aten operator -> scheme.
        smoothing: move scale between channels, so that ranges of activations become narrower and those of weights wider; None: in
            vgf_8a8w, since 16 bits hold activations as they are.
        rotation: turn the residual stream, the values of each head and what enters `down_proj` into a basis in which no channel is much
            larger than the others; None: in vgf_8a8w, where the decoder lets it.
        full_logits: logits of all positions in prefill, rather than of the last.
    """

    mode: str | None
    scope: str = "full"
    spec: str = ""
    max_seq_length: int = 512
    prefill_chunk: int = 0
    calibration_limit: int = 8
    calibration_seq_length: int = 0
    activation_scales: str | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    smoothing: bool | None = None
    rotation: bool | None = None
    full_logits: bool = False

    def __post_init__(self) -> None:
        defaults = {
            "spec": FLOAT_SPEC if self.mode is None else QUANTIZED_SPEC,
            "prefill_chunk": min(PREFILL_CHUNK, self.max_seq_length),
        }
        for name, value in defaults.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        if not self.calibration_seq_length:
            chunk = max(self.prefill_chunk, 1)
            length = max(min(CALIBRATION_SEQ_LENGTH, self.max_seq_length) // chunk, 1) * chunk
            object.__setattr__(self, "calibration_seq_length", length)

    @property
    def per_token(self) -> bool:
        """Whether rows that enter linear layers have scales of their own, found at run time."""
        return (self.activation_scales or ("per-token" if self.mode == "vgf_8a8w" else "static")) == "per-token"

    @property
    def smooths(self) -> bool:
        """Whether layers are smoothed."""
        return self.mode == "vgf_8a8w" if self.smoothing is None else self.smoothing

    def rotates(self, config: DecoderConfig) -> bool:
        """Whether a decoder is rotated."""
        return self.mode == "vgf_8a8w" and not config.post_norms if self.rotation is None else self.rotation

    @property
    def head(self) -> Mapping[str, str]:
        """The scheme of the head, where it is not the mode's: logits are what a user sees, and one layer of 16 bits costs little."""
        return {"lm_head": self.sixteen_bits} if self.mode == "vgf_8a8w" else {}

    @property
    def sixteen_bits(self) -> str:
        """The scheme of single linear layers that read more than eight bits."""
        return "16a8w-per-token" if self.per_token or self.mode == "vgf_16a8w" else "16a8w-digits"

    @property
    def finds_outliers(self) -> bool:
        """Whether inputs of linear layers of which few tokens take most of the range get 16 bits; those with scales per token need none."""
        return self.mode == "vgf_8a8w" and not self.per_token

    @property
    def recipe(self) -> Recipe:
        """What the quantizer is asked for."""
        if self.mode is None:
            return Recipe("fp32")
        return Recipe(MODES[self.mode] + ("-per-token" if self.per_token else ""), self.scope, self.overrides)

    def check(self) -> None:
        """Refuse what can be refused without the checkpoint.

        Raises:
            InputError: a word that is not known, lengths that do not fit one another.
            SpecError: a specification that cannot hold what was asked; the message names one that can.
        """
        if self.mode is not None:
            check_known("quantization mode", self.mode, MODES)
        check_known("quantize scope", self.scope, SCOPES)
        if self.activation_scales is not None:
            check_known("activation scales", self.activation_scales, ACTIVATION_SCALES)
        for what, asked in (
            ("overrides", self.overrides),
            ("a quantize scope", self.scope != "full"),
            ("activation scales", self.activation_scales),
            ("smoothing", self.smoothing),
            ("rotation", self.rotation),
        ):
            if asked and self.mode is None:
                raise InputError(f"{what} without a quantization mode", remedy=f"give --pt2e-quantize {' or '.join(MODES)}")
        if self.mode == "vgf_16a8w" and self.per_token:
            raise InputError("vgf_16a8w has static activation scales, which 16 bits need no more than", remedy="use vgf_8a8w for per-token")
        self.recipe.check(Spec.parse(self.spec), "--arm-vgf-compile-spec")
        self._check_lengths()

    def _check_lengths(self) -> None:
        for name in ("max_seq_length", "prefill_chunk", "calibration_limit", "calibration_seq_length"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"{name.replace('_', '-')} is {value}, expected at least 1")
        length, chunk = self.max_seq_length, self.prefill_chunk
        for flag, value in (("max-seq-length", length), ("calibration-seq-length", self.calibration_seq_length)):
            if value % chunk:
                what = f"{flag} {value} is no multiple of the prefill chunk, {chunk}"
                raise InputError(what, remedy=f"use --{flag} {-(-value // chunk) * chunk}, or another --prefill-chunk")
        if self.calibration_seq_length > length:
            raise InputError(
                f"calibration-seq-length {self.calibration_seq_length} is longer than the caches, which hold {length} positions",
                remedy=f"use --calibration-seq-length {length} or less, or a greater --max-seq-length",
            )
