"""The options of each command as one model each: what a YAML file may say, what the defaults are, what is refused.

A flag that was given wins over the file (`--config run.yaml`), the file wins over the defaults below.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

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


class Options(BaseModel):
    """Base of all."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


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


Model = TypeVar("Model", bound=Options)


def resolve(model: type[Model], given: Mapping[str, Any], config: Path | None = None) -> Model:
    """The options of a command.

    Args:
        given: what the command line says; None and () mean that a flag was not given.
        config: a YAML file with further options, keys spelt like the flags.

    Raises:
        InputError: an unknown key, a wrong type, something missing.
    """
    known = {field.alias or name: name for name, field in model.model_fields.items()}
    values = _read(config, known) if config is not None else {}
    from_file = set(values)
    for key, value in given.items():
        if value is not None and value != []:
            values[key] = value
            from_file.discard(key)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _explain(error, config, from_file) from None


def _read(path: Path, known: Mapping[str, str]) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_bytes(), _Loader)
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"not valid YAML: {getattr(error, 'problem', None) or error}", where=where) from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(f"{path} holds {_kind(data)}, expected options as `key: value`", remedy="see examples/run.yaml")
    values = {}
    for key, value in data.items():
        name = str(key).replace("-", "_")
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            remedy = f"did you mean '{_spelt(close[0])}'?" if close else f"known are {', '.join(map(_spelt, known))}"
            raise InputError(f"unknown option '{key}' in {path}", remedy=remedy)
        if value is not None:
            values[name] = value
    return values


class _Loader(yaml.SafeLoader):
    """YAML 1.2's booleans: `on` is a key of ours, and `no` may be a name. A key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"'{twice}' is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

_EXPECTED = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "list": "a list", "dict": "a mapping"}
_ARGUMENTS = {"model": "MODEL", "file": "FILE"}


def _explain(error: ValidationError, config: Path | None, from_file: set[str]) -> InputError:
    """pydantic's first finding in our words: the key, what was expected, what was found."""
    first = error.errors()[0]
    key = str(first["loc"][0])
    if first["type"] == "missing":
        flag = _ARGUMENTS.get(key, f"--{_spelt(key)}")
        return InputError(f"{flag} is missing", remedy="give it on the command line, or in a file with --config")
    kind, limits = first["type"], first.get("ctx", {})
    if kind == "literal_error":
        expected = limits["expected"]
    elif "greater_than_equal" in kind:
        expected = f"at least {limits['ge']}"
    else:
        expected = _EXPECTED.get(kind.split("_")[0], first["msg"].lower())
    part = "".join(f"[{p}]" for p in first["loc"][1:])
    name = _spelt(key) if key in from_file else _ARGUMENTS.get(key, f"--{_spelt(key)}")
    found = first["input"]
    return InputError(f"{name}{part}: expected {expected}, found {_kind(found)}", where=str(config) if key in from_file else None)


def _kind(value: Any) -> str:
    kinds = {str: "the text", bool: "", int: "the number", float: "the number", dict: "the mapping", list: "the list"}
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    return f"{kinds.get(type(value), type(value).__name__)} {text}".strip()


def _spelt(name: str) -> str:
    return name.rstrip("_").replace("_", "-")
