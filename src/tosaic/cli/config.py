"""The options of each command as one model each: what a YAML file may say, what the defaults are, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from tosaic.cli.resolve import Options
from tosaic.errors import InputError


def _as_list(value: Any) -> Any:
    """One alone stands for a list of one."""
    return [value] if isinstance(value, str | Path) else value


def _shapes(value: Any) -> Any:
    """`1,3,224,224`, [1, 3, 224, 224], or a list of either."""
    if isinstance(value, str) or (isinstance(value, list) and value and all(isinstance(d, int) for d in value)):
        value = [value]
    if not isinstance(value, list):
        return value
    return [",".join(map(str, shape)) if isinstance(shape, list) else shape for shape in value]


def _overrides(value: Any) -> Any:
    """{pattern: scheme}, or a list of `pattern=scheme`."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        return value
    result = {}
    for item in value:
        pattern, equals, scheme = str(item).rpartition("=")
        if not equals or not pattern or not scheme:
            raise InputError(f"override '{item}' is not of the form PATTERN=SCHEME", remedy="write it like --override 'blocks.3.*=16a8w'")
        result[pattern] = scheme
    return result


Texts = Annotated[list[str], BeforeValidator(_as_list)]
Shapes = Annotated[list[str], BeforeValidator(_shapes)]
Overrides = Annotated[dict[str, str], BeforeValidator(_overrides)]
Numbers = Annotated[
    list[float], BeforeValidator(lambda v: v.split(",") if isinstance(v, str) else [v] if isinstance(v, int | float) else v)
]
Positive = Annotated[int, Field(ge=1)]


class ImageOptions(Options):
    """How image files become tensors: pixels in [0, 1], minus mean, over standard deviation, by channel."""

    image_mean: Numbers | None = None
    image_std: Numbers | None = None

    @field_validator("image_std")
    @classmethod
    def _no_zero(cls, value: list[float] | None) -> list[float] | None:
        if value and 0 in value:
            raise InputError("image-std contains 0, by which nothing can be divided")
        return value


class CompileOptions(ImageOptions):
    """What `export` and `qat` share; names of schemes and the like are checked by the library, which knows them."""

    model: str
    output: Path
    calibration: str | None = None
    samples: Positive | None = None
    input_shape: Shapes = []
    scheme: str = "8a8w"
    scope: str = "full"
    override: Overrides = {}
    between: str = "int32"
    spec: str | None = None
    io_layout: Literal["model", "nhwc"] = "model"
    emitter: Literal["direct", "converter"] = "direct"
    debug_info: bool = True
    strict: bool = False
    dump: Path | None = None
    name: str | None = None


class ExportOptions(CompileOptions):
    """Options of `tosaic export`."""

    observer: str = "minmax"
    bias_correction: bool = True


class QatOptions(CompileOptions):
    """Options of `tosaic qat`."""

    train: str


class RunOptions(ImageOptions):
    """Options of `tosaic run`."""

    file: Path
    input: Texts = []
    on: Literal["simulator", "reference", "vulkan"] = "simulator"
    device: str = "cpu"
    float_io: bool | None = Field(default=None, alias="float")
    output: Path | None = None
    repeat: Positive = 1
    profile: bool = False


class VerifyOptions(ImageOptions):
    """Options of `tosaic verify`."""

    file: Path
    input: Texts = []
    ulp: Annotated[float, Field(ge=0)] | None = None
    each: bool = False
    device: str = "cpu"
    against: str | None = None


class InspectOptions(Options):
    """Options of `tosaic inspect`."""

    file: Path
    text: bool = False
    json_: bool = Field(default=False, alias="json")
    ledger: bool = False
    dot: Path | None = None
    svg: Path | None = None
    scenario: Path | None = None
    header: Path | None = None
    open_: bool = Field(default=False, alias="open")


class DemoOptions(Options):
    """Options of `tosaic demo`."""

    output: Path = Path("demo-output")
    data: str = "auto"
    epochs: Positive | None = None
    quick: bool = False


class LlmExportOptions(Options):
    """Options of `tosaic llm export`; in a file they have the keys of ExecuTorch's LlmConfig, and ours beside them."""

    keys = {
        "checkpoint": "base.checkpoint",
        "params": "base.params",
        "tokenizer": "base.tokenizer_path",
        "use_kv_cache": "model.use_kv_cache",
        "max_seq_length": "export.max_seq_length",
        "prefill_chunk": "export.prefill_chunk",
        "output_dir": "export.output_dir",
        "resume": "export.resume",
        "full_logits": "debug.generate_full_logits",
        "pt2e_quantize": "quantization.pt2e_quantize",
        "calibration_text": "quantization.calibration_data",
        "calibration_limit": "quantization.calibration_limit",
        "calibration_seq_length": "quantization.calibration_seq_length",
        "activation_scales": "quantization.activation_scales",
        "override": "quantization.overrides",
        "smoothing": "quantization.smoothing",
        "rotation": "quantization.rotation",
        "vgf": "backend.vgf.enabled",
        "arm_vgf_compile_spec": "backend.vgf.compile_spec",
        "arm_vgf_quantize_scope": "backend.vgf.quantize_scope",
        "compiler_flags": "backend.vgf.compiler_flags",
    }
    file_only = frozenset(("use_kv_cache", "vgf", "compiler_flags"))
    elsewhere = {
        "base.model_class": "leave it out: the checkpoint says what it is",
        "export.max_context_length": "export.max_seq_length is how many positions the caches hold",
        "export.output_name": "export.output_dir names the folder; the files in it have names of their own",
        "quantization.qmode": "quantization.pt2e_quantize, with vgf_8a8w or vgf_16a8w",
        "model.quantize_kv_cache": "leave it out: quantization.pt2e_quantize quantizes the caches too",
    }

    checkpoint: Path
    params: Path | None = None
    tokenizer: Path | None = None
    use_kv_cache: bool = True
    max_seq_length: Positive = 512
    prefill_chunk: Positive | None = None
    output_dir: Path
    resume: bool = False
    full_logits: bool = False
    pt2e_quantize: str | None = None
    calibration_text: Path | None = None
    calibration_limit: Positive = 8
    calibration_seq_length: Positive | None = None
    activation_scales: str | None = None
    override: Overrides = {}
    smoothing: bool | None = None
    rotation: bool | None = None
    vgf: bool = True
    arm_vgf_compile_spec: str | None = None
    arm_vgf_quantize_scope: str = "full"
    compiler_flags: Texts = []

    @field_validator("use_kv_cache", "vgf")
    @classmethod
    def _always(cls, value: bool, info: ValidationInfo) -> bool:
        if not value:
            key = cls.keys[info.field_name or ""]
            why = {"use_kv_cache": "decode takes the caches that prefill left", "vgf": ".vgf files are what is written"}
            raise InputError(f"{key} is false: {why[info.field_name or '']}", remedy="leave it out, or set it to true")
        return value

    @field_validator("compiler_flags")
    @classmethod
    def _no_compiler(cls, value: list[str]) -> list[str]:
        if value:
            what = f"{cls.keys['compiler_flags']}: no compiler of others runs that {' '.join(value)} could be given to"
            raise InputError(what, remedy="leave it out: Tosaic writes the .vgf itself")
        return value


class LlmGenerateOptions(Options):
    """Options of `tosaic llm generate`."""

    folder: Path
    prompt: str | None = None
    system: str | None = None
    raw: bool = False
    max_new_tokens: Positive = 128
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_k: Positive | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0)] | None = None
    on: Literal["simulator", "reference", "vulkan"] = "simulator"


class LlmPerplexityOptions(Options):
    """Options of `tosaic llm perplexity`."""

    folder: Path
    text: Path
    checkpoint: Path | None = None
    params: Path | None = None
    calibration_text: Path | None = None
    limit: Positive | None = None
    chunk: Annotated[int, Field(ge=2)] = 512
    on: Literal["simulator", "reference", "vulkan"] = "simulator"
    json_: bool = Field(default=False, alias="json")
