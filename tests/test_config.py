"""Options from a YAML file and from flags: who wins, and what is refused."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from tosaic.cli import config, llm, main
from tosaic.cli.config import ExportOptions, QatOptions, RunOptions
from tosaic.cli.resolve import resolve
from tosaic.errors import InputError
from tosaic.quantization.schemes import PRECISIONS, SCHEMES, SCOPES

NEEDED = {"model": "a.py:m", "output": "a.vgf"}
COMMANDS = {
    main.export: config.ExportOptions,
    main.qat: config.QatOptions,
    main.run_file: config.RunOptions,
    main.verify: config.VerifyOptions,
    main.inspect: config.InspectOptions,
    main.demo: config.DemoOptions,
    llm.export: config.LlmExportOptions,
    llm.generate: config.LlmGenerateOptions,
    llm.perplexity: config.LlmPerplexityOptions,
}


@pytest.fixture
def file(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        (tmp_path / "run.yaml").write_text(text)
        return tmp_path / "run.yaml"

    return write


def test_a_flag_wins_over_the_file_which_wins_over_the_default(file: Any) -> None:
    path = file("model: b.py:m\nscheme: 16a8w\nscope: linear\n")
    options = resolve(ExportOptions, {**NEEDED, "model": None, "scope": "full", "samples": None, "override": []}, path)
    assert (options.model, options.scheme, options.scope, options.between) == ("b.py:m", "16a8w", "full", "int32")


def test_keys_are_spelt_like_the_flags(file: Any) -> None:
    text = "input-shape: [1, 3, 8, 8]\nio_layout: nhwc\nimage-mean: [0.5, 0.5, 0.5]\nimage-std: 2\noverride: {head.*: fp32}\nstrict: true\n"
    options = resolve(ExportOptions, NEEDED, file(text))
    assert options.input_shape == ["1,3,8,8"] and options.io_layout == "nhwc" and options.strict
    assert options.image_mean == [0.5] * 3 and options.image_std == [2.0] and options.override == {"head.*": "fp32"}


def test_several_shapes_and_flags_of_text(file: Any) -> None:
    assert resolve(ExportOptions, NEEDED, file("input-shape: [[1, 3], '1,4:int64']")).input_shape == ["1,3", "1,4:int64"]
    given = {**NEEDED, "override": ["a=b=fp32", "head=8a8w"], "image_mean": "0.1,0.2"}
    options = resolve(ExportOptions, given)
    assert options.override == {"a=b": "fp32", "head": "8a8w"} and options.image_mean == [0.1, 0.2]


def test_words_that_yaml_1_1_takes_for_booleans(file: Any) -> None:
    options = resolve(RunOptions, {}, file("file: a.vgf\non: vulkan\ninput: x.npy\nfloat: false"))
    assert options.on == "vulkan" and options.input == ["x.npy"] and options.float_io is False
    assert resolve(ExportOptions, NEEDED, file("name: no")).name == "no"


# (text of the file, parts of the message)
REFUSED = [
    ("shceme: 8a8w", ["unknown option 'shceme' in", "did you mean 'scheme'?"]),
    ("zzz: 1", ["unknown option 'zzz'", "known are", "io-layout"]),
    ("train: a.py:f", ["unknown option 'train'"]),
    ("samples: many", ["samples: expected a whole number, found the text 'many'", "at: ", "run.yaml"]),
    ("samples: 0", ["samples: expected at least 1, found the number 0"]),
    ("strict: 3", ["strict: expected true or false, found the number 3"]),
    ("scheme: [8a8w]", ["scheme: expected text, found the list ['8a8w']"]),
    ("scheme: 8", ["scheme: expected text, found the number 8"]),
    ("override: 3", ["override: expected a mapping, found the number 3"]),
    ("override: {head: 8}", ["override[head]: expected text, found the number 8"]),
    ("image-mean: [a]", ["image-mean[0]: expected a number, found the text 'a'"]),
    ("image-std: 0", ["image-std contains 0"]),
    ("io-layout: hwc", ["io-layout: expected 'model' or 'nhwc', found the text 'hwc'"]),
    ("a: [", ["not valid YAML", "run.yaml:1"]),
    ("scheme: 8a8w\nscheme: fp32", ["'scheme' is given twice", "run.yaml:1"]),
    ("day: 2026-99-99", ["not valid YAML", "month must be in 1..12"]),
    ("? [a]\n: 1", ["not valid YAML", "unhashable"]),
    ("a: " + "[" * 5000, ["not valid YAML"]),
    ("\x00", ["not valid YAML"]),
    ("- scheme", ["holds the list ['scheme'], expected options as `key: value`"]),
]


@pytest.mark.parametrize(("text", "parts"), REFUSED, ids=[text[:30] for text, _ in REFUSED])
def test_refused(text: str, parts: list[str], file: Any) -> None:
    with pytest.raises(InputError) as error:
        resolve(ExportOptions, NEEDED, file(text))
    for part in parts:
        assert part in str(error.value)


def test_aliases_of_aliases_are_not_spelt_out(file: Any) -> None:
    """Nine lines that stand for a billion."""
    levels = ["&a0 [1, 1]", *(f"&a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10))]
    with pytest.raises(InputError, match=r"io-layout: .*found the list \[") as error:
        resolve(ExportOptions, NEEDED, file(f"io-layout: [{', '.join(levels)}]"))
    assert len(str(error.value)) < 2000


LLM = {"checkpoint": "model", "output_dir": "out"}
SECTIONS = """
base: {checkpoint: other, tokenizer_path: t.json}
export.max_seq_length: 256
quantization:
  pt2e_quantize: vgf_16a8w
  calibration_data: emma.txt
  calibration-limit: 4
  overrides: {lm_head: 8a8w}
  smoothing: false
  rotation: true
backend.vgf: {enabled: true, compile_spec: TOSA-1.0+INT+int16, compiler_flags: []}
model:
debug.generate_full_logits: true
"""


def test_sections_by_dots_and_by_mappings(file: Any) -> None:
    options = resolve(config.LlmExportOptions, {**LLM, "checkpoint": None, "max_seq_length": 512, "override": []}, file(SECTIONS))
    assert (str(options.checkpoint), str(options.tokenizer), options.max_seq_length) == ("other", "t.json", 512)
    assert (options.pt2e_quantize, str(options.calibration_text), options.calibration_limit) == ("vgf_16a8w", "emma.txt", 4)
    assert options.override == {"lm_head": "8a8w"} and not options.smoothing and options.rotation and options.full_logits
    assert options.arm_vgf_compile_spec == "TOSA-1.0+INT+int16" and options.arm_vgf_quantize_scope == "full"


# (text of the file, parts of the message)
LLM_REFUSED = [
    ("base.chekpoint: a", ["unknown option 'base.chekpoint' in", "did you mean 'base.checkpoint'?"]),
    ("quantization: {pt2e: vgf_8a8w}", ["unknown option 'quantization.pt2e'", "did you mean 'quantization.pt2e_quantize'?"]),
    ("backend: {vfg: {enabled: true}}", ["unknown option 'backend.vfg'", "did you mean 'backend.vgf'?"]),
    ("pt2e_quantize: vgf_8a8w", ["unknown option 'pt2e-quantize'", "did you mean 'quantization.pt2e_quantize'?"]),
    ("max_seq_length: 4", ["did you mean 'export.max_seq_length'?"]),
    ("base: {model_class: llama3}", ["unknown option 'base.model_class'", "the checkpoint says what it is"]),
    ("quantization.qmode: 8da4w", ["unknown option 'quantization.qmode'", "quantization.pt2e_quantize, with vgf_8a8w or vgf_16a8w"]),
    ("base: 3", ["base: expected a mapping, found the number 3", "run.yaml"]),
    ("backend: {vgf: on}", ["backend.vgf: expected a mapping, found the text 'on'"]),
    ("base: {params: a}\nbase.params: b", ["'base.params' is given twice in"]),
    ("export.max_seq_length: long", ["export.max_seq_length: expected a whole number, found the text 'long'", "run.yaml"]),
    ("export: {prefill_chunk: 0}", ["export.prefill_chunk: expected at least 1, found the number 0"]),
    ("quantization.pt2e_quantize: [vgf_8a8w, vgf_16a8w]", ["quantization.pt2e_quantize: expected text, found the list"]),
    ("quantization.overrides: {lm_head: 8}", ["quantization.overrides[lm_head]: expected text, found the number 8"]),
    ("model.use_kv_cache: false", ["model.use_kv_cache is false: decode takes the caches that prefill left", "leave it out"]),
    ("backend.vgf.enabled: false", ["backend.vgf.enabled is false: .vgf files are what is written"]),
    (
        "backend.vgf.compiler_flags: [--dump]",
        ["backend.vgf.compiler_flags: no compiler of others", "--dump", "Tosaic writes the .vgf itself"],
    ),
]


@pytest.mark.parametrize(("text", "parts"), LLM_REFUSED, ids=[text for text, _ in LLM_REFUSED])
def test_refused_sections(text: str, parts: list[str], file: Any) -> None:
    with pytest.raises(InputError) as error:
        resolve(config.LlmExportOptions, LLM, file(text))
    for part in parts:
        assert part in str(error.value)


def test_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="MODEL is missing"):
        resolve(ExportOptions, {"output": "a.vgf"})
    with pytest.raises(InputError, match="--train is missing"):
        resolve(QatOptions, NEEDED)
    with pytest.raises(InputError, match=r"none.yaml: No such file"):
        resolve(ExportOptions, NEEDED, tmp_path / "none.yaml")


def test_a_wrong_flag_is_named_as_a_flag() -> None:
    with pytest.raises(InputError, match=r"^--samples: expected at least 1"):
        resolve(ExportOptions, {**NEEDED, "samples": 0})


def test_commands_and_models_have_the_same_options_and_the_help_shows_the_true_defaults() -> None:
    for command, model in COMMANDS.items():
        signature = inspect.signature(command, eval_str=True)
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        assert set(signature.parameters) - {"config"} == set(fields) - model.file_only, command
        assert {*model.keys, *model.file_only} <= set(fields)
        for name, parameter in signature.parameters.items():
            [option] = parameter.annotation.__metadata__
            assert parameter.default is None
            if isinstance(shown := option.show_default, str):
                default = fields[name].default
                flag = name.replace("_", "-")
                assert shown == ((flag if default else f"no-{flag}") if isinstance(default, bool) else str(default)), (command, name)


def test_the_help_names_what_the_library_knows() -> None:
    [scheme], [scope], [between] = (
        inspect.signature(main.export, eval_str=True).parameters[n].annotation.__metadata__ for n in ("scheme", "scope", "between")
    )
    assert scheme.metavar.split("|") == list(SCHEMES) and scope.metavar.split("|") == list(SCOPES)
    assert sorted(between.metavar.split("|")) == sorted(PRECISIONS)
