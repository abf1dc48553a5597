"""`tosaic llm` as a user types it: a tiny model from its checkpoint to generated text, and every mistake with its one message."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from llm import exported, tiny
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tosaic.cli.main import app
from tosaic.llm.manifest import read_manifest
from tosaic.llm.tokenizer import save_tokenizer

EXAMPLE = Path(__file__).parents[2] / "examples/llm.yaml"
SMALL = "--max-seq-length 64 --prefill-chunk 16 --calibration-seq-length 32 --calibration-limit 2"

# Refused before torch is imported: (arguments, parts of the message)
# {c}: a checkpoint, {e}: a folder with an llm.json, {t}: a text, {o}: where output goes
EARLY: dict[str, tuple[str, list[str]]] = {
    "no checkpoint": ("export -o {o}", ["--checkpoint is missing"]),
    "no output": ("export --checkpoint {c}", ["--output-dir is missing"]),
    "no such checkpoint": ("export --checkpoint {o}/x -o {o}", ["no such checkpoint: "]),
    "no such params": ("export --checkpoint {c} --params {o}/p.json -o {o}", ["--params: no such file: ", "p.json"]),
    "no such tokenizer": ("export --checkpoint {c} --tokenizer {o}/t.json -o {o}", ["--tokenizer: no such file: ", "t.json"]),
    "an unknown mode": (
        "export --checkpoint {c} --pt2e-quantize vgf_8w8a -o {o}",
        ["unknown quantization mode 'vgf_8w8a'", "did you mean vgf_8a8w?", "known are vgf_8a8w, vgf_16a8w"],
    ),
    "16 bits without the extension": (
        "export --checkpoint {c} --pt2e_quantize vgf_16a8w --calibration-text {t} -o {o}",
        ["16a8w needs the int16 extension, which TOSA-1.0+INT does not have", "use --arm-vgf-compile-spec TOSA-1.0+INT+int16"],
    ),
    "linear scope without floats": (
        "export --checkpoint {c} --pt2e_quantize vgf_8a8w --vgf_quantize_scope linear --calibration-text {t} -o {o}",
        ["scope linear needs the FP profile", "use --arm-vgf-compile-spec TOSA-1.0+INT+FP"],
    ),
    "floats without floats": (
        "export --checkpoint {c} --vgf-compile-spec TOSA-1.0+INT -o {o}",
        ["fp32 needs the FP profile", "use --arm-vgf-compile-spec TOSA-1.0+INT+FP"],
    ),
    "no specification": ("export --checkpoint {c} --arm_vgf_compile_spec INT -o {o}", ["'INT' is not a TOSA specification string"]),
    "no text": (
        "export --checkpoint {c} --pt2e-quantize vgf_8a8w -o {o}",
        ["vgf_8a8w needs text to calibrate on", "--calibration-text FILE"],
    ),
    "no such text": (
        "export --checkpoint {c} --pt2e-quantize vgf_8a8w --calibration_data {o}/x.txt -o {o}",
        ["--calibration-text: ", "x.txt: No such file"],
    ),
    "text of bytes": (
        "export --checkpoint {c} --pt2e-quantize vgf_8a8w --calibration-text {t}.latin1 -o {o}",
        ["is not UTF-8 text (byte 3)", "iconv"],
    ),
    "an odd length": (
        "export --checkpoint {c} --max_seq_length 100 --prefill_chunk 64 -o {o}",
        ["max-seq-length 100 is no multiple of the prefill chunk, 64", "use --max-seq-length 128"],
    ),
    "long samples": (
        "export --checkpoint {c} --pt2e-quantize vgf_8a8w --calibration-text {t} --calibration-seq-length 1024 -o {o}",
        ["calibration-seq-length 1024 is longer than the caches, which hold 512 positions"],
    ),
    "no samples": ("export --checkpoint {c} --calibration-limit 0 -o {o}", ["--calibration-limit: expected at least 1"]),
    "an unknown scope": (
        "export --checkpoint {c} --pt2e-quantize vgf_8a8w --arm-vgf-quantize-scope all -o {o}",
        ["unknown quantize scope 'all'"],
    ),
    "a bad override": ("export --checkpoint {c} --override lm_head -o {o}", ["override 'lm_head' is not of the form PATTERN=SCHEME"]),
    "overrides of floats": ("export --checkpoint {c} --override lm_head=8a8w -o {o}", ["overrides without a quantization mode"]),
    "a file for a folder": ("export --checkpoint {c} -o {t}", ["--output-dir ", "is a file, expected a folder"]),
    "a folder in a file": ("export --checkpoint {c} -o {t}/out", ["cannot write ", " is a file"]),
    "nothing exported": ("generate {o}/x --prompt a", ["no exported language model: ", "give the --output-dir of tosaic llm export"]),
    "nothing to score": ("perplexity {c} --text {t}", ["no exported language model: ", "has no llm.json"]),
    "params alone": ("perplexity {e} --text {t} --params {t}", ["--params without --checkpoint"]),
    "no such float model": ("perplexity {e} --text {t} --checkpoint {o}/x", ["no such checkpoint: "]),
    "no text to score": ("perplexity {e}", ["--text is missing"]),
    "a text that is not there": ("perplexity {e} --text {o}/x", ["--text: ", "No such file"]),
    "a cold temperature": ("generate {e} --prompt a --temperature -1", ["--temperature: expected at least 0"]),
    "a share of more than all": ("generate {e} --prompt a --top-p 1.5", ["--top-p: expected at most 1"]),
    "a share of nothing": ("generate {e} --prompt a --top-p 0", ["--top-p: expected more than 0"]),
    "an unknown executor": (
        "generate {e} --prompt a --on gpu",
        ["--on: expected 'simulator', 'reference' or 'vulkan', found the text 'gpu'"],
    ),
}

_RUNS = """
import json, sys
from typer.testing import CliRunner
from tosaic.cli.main import app
results = []
for arguments in json.load(sys.stdin):
    result = CliRunner().invoke(app, ["llm", *arguments], catch_exceptions=False)
    results.append([result.exit_code, result.stdout, result.stderr, "torch" in sys.modules])
json.dump(results, sys.stdout)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint "c" with a tokenizer, a text "t", and one that is not UTF-8."""
    place = tmp_path_factory.mktemp("llm")
    save_tokenizer(exported.tokenizer(), tiny.save_hugging_face("llama", place / "c"))
    (place / "t").write_text("the cat sat on the mat " * 40)
    (place / "t.latin1").write_bytes("caf\xe9 au lait".encode("latin-1"))
    (place / "e").mkdir()
    (place / "e" / "llm.json").touch()
    return place


def arguments(text: str, place: Path, output: Path) -> list[str]:
    return [word.format(c=place / "c", e=place / "e", t=place / "t", o=output) for word in text.split()]


@pytest.fixture(scope="module")
def early(place: Path) -> dict[str, list[Any]]:
    """All early refusals, in one process that starts without torch."""
    commands = [arguments(text, place, place / "out") for text, _ in EARLY.values()]
    done = subprocess.run([sys.executable, "-c", _RUNS], input=json.dumps(commands), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip(EARLY, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("name", EARLY)
def test_refused_before_anything_is_loaded(name: str, early: dict[str, list[Any]]) -> None:
    code, out, err, torch_imported = early[name]
    assert code == 2 and out == "" and err.startswith("error: ") and "Traceback" not in err, err
    for part in EARLY[name][1]:
        assert part in err
    assert not torch_imported


def cli(*words: object, given: str | None = None) -> Any:
    return CliRunner().invoke(app, ["llm", *map(str, words)], input=given, catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(place: Path) -> Path:
    """What the example of the guide exports."""
    result = cli(
        *arguments(f"export --config {EXAMPLE} --checkpoint {{c}} --calibration-text {{t}} {SMALL} -o {{o}}", place, place / "made")
    )
    assert result.exit_code == 0, result.stderr
    for part in (
        "llama, 2 layers",
        "vgf_16a8w, scope full, static scales",
        "TOSA-1.0+INT+int16",
        "16 tokens a run",
        "64 positions",
        "64 tokens",
    ):
        assert part in result.stdout
    return place / "made"


def test_export(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest.quantization["mode"] == "vgf_16a8w" and manifest.quantization["overrides"] == {"lm_head": "16a8w"}
    assert manifest.max_seq_length == 64 and not manifest.full_logits
    assert sorted(p.name for p in folder.iterdir() if p.suffix == ".vgf") == ["decode.vgf", "prefill.vgf"]


def test_interrupted(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tosaic.llm.export.export", interrupt)
    result = cli("export", "--checkpoint", place / "c", "--max-seq-length", 32, "-o", tmp_path)
    assert result.exit_code == 130 and "--resume goes on behind the last layer" in result.stderr


def test_generate(folder: Path) -> None:
    result = cli("generate", folder, "--prompt", "the cat", "--raw", "--max-new-tokens", 8)
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout.rstrip("\n")) == 8  # a token is a character here
    assert "prompt: 8 tokens" in result.stderr and "answer: 8 tokens" in result.stderr and "--max-new-tokens" in result.stderr
    assert cli("generate", folder, "--raw", "--max-new-tokens", 8, given="the cat\n").stdout == result.stdout
    drawn = [cli("generate", folder, "-p", "the cat", "--raw", "--temperature", 2, "--seed", n).stdout for n in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_generate_by_the_chat_template(folder: Path) -> None:
    result = cli("generate", folder, "--prompt", "hi", "--system", "be kind", "--max-new-tokens", 1)
    assert result.exit_code == 0, result.stderr
    assert f"prompt: {len('s:be kind' + 'u:hi' + 'a:')} tokens" in result.stderr


def test_a_prompt_longer_than_the_caches(folder: Path) -> None:
    result = cli("generate", folder, "--prompt", "x" * 64, "--raw")
    assert result.exit_code == 2 and result.stdout == ""
    assert "sequence longer than the cache: 65 tokens, and there are 64 positions" in result.stderr


def test_perplexity(folder: Path, place: Path, tmp_path: Path) -> None:
    command = ("perplexity", folder, "--text", place / "t", "--chunk", 32, "--limit", 100)
    result = cli(*command)
    assert result.exit_code == 0, result.stderr
    assert (
        "93 tokens predicted, in chunks of 32" in result.stdout and "artifacts" in result.stdout
    )  # 3 chunks, the first token of each given
    scores = json.loads(cli(*command, "--json").stdout)["scores"]
    assert list(scores) == ["float", "artifacts"] and scores["artifacts"]["tokens"] == 93
    assert abs(scores["artifacts"]["change"]) < 0.05 and 0 < scores["artifacts"]["kl"] < 0.01 and scores["artifacts"]["top1"] > 0.9
    assert f"{scores['artifacts']['perplexity']:.3f}" in result.stdout
    single = cli("perplexity", folder, "--text", place / "t", "--chunk", 2, "--limit", 2, "--json").stdout
    assert json.loads(single)["scores"]["artifacts"]["standard_error"] is None
    tiny.save_hugging_face("llama-tied", tmp_path)
    other = json.loads(cli(*command, "--json", "--checkpoint", tmp_path).stdout)["scores"]
    assert other["artifacts"]["perplexity"] == scores["artifacts"]["perplexity"] and other["artifacts"]["kl"] > 0.1
    assert other["float"]["perplexity"] != scores["float"]["perplexity"]


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (["--chunk", "128"], "chunks of 128 tokens are longer than the cache: it has 64 positions"),
        (["--chunk", "1"], "--chunk: expected at least 2"),
        (["--text", "{short}"], "the text has 7 tokens; a chunk takes 31"),
    ],
)
def test_texts_that_cannot_be_scored(further: list[str], message: str, folder: Path, place: Path, tmp_path: Path) -> None:
    (tmp_path / "short").write_text("the cat")
    words = [word.format(short=tmp_path / "short") for word in further]
    result = cli("perplexity", folder, "--text", place / "t", "--chunk", 32, *words)
    assert result.exit_code == 2 and result.stdout == "" and message in result.stderr, result.stderr


def test_a_float_model_needs_no_tokenizer(tmp_path: Path) -> None:
    tiny.save_hugging_face("llama", tmp_path / "c")
    result = cli("export", "--checkpoint", tmp_path / "c", "--max-seq-length", 32, "--prefill-chunk", 8, "-o", tmp_path / "o")
    assert result.exit_code == 0, result.stderr
    assert "fp32" in result.stdout and "none: give token ids" in result.stdout
    result = cli("generate", tmp_path / "o", "--prompt", "hi")
    assert result.exit_code == 2 and "has no tokenizer" in result.stderr and "export with --tokenizer" in result.stderr


def _without(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        del state[name]
        save_file(state, folder / "model.safetensors")

    return change


def _misshapen(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file(state | {"model.norm.weight": torch.ones(7)}, folder / "model.safetensors")


def _config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def _truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _other_tokenizer(folder: Path) -> None:
    tokenizer = exported.tokenizer()
    tokenizer.model.add_tokens(["the"])
    save_tokenizer(tokenizer, folder)


# (what happens to the checkpoint, further arguments, parts of the message)
LATE: dict[str, tuple[Callable[[Path], object], str, list[str]]] = {
    "a missing tensor": (_without("model.norm.weight"), "", ["model.norm.weight: expected [32], found none"]),
    "a misshapen tensor": (_misshapen, "", ["model.norm.weight: expected [32], found [7]"]),
    "an unknown architecture": (_config(model_type="lama"), "", ["unknown architecture 'lama'", "did you mean llama?"]),
    "nonsense": (_config(num_attention_heads=0), "", ["num_attention_heads is 0, expected a whole number from 1"]),
    "a truncated file": (_truncated, "", ["model.safetensors cannot be read", "fetch it again"]),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "", ["no tokenizer: ", "name one with --tokenizer"]),
    "no usable tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "", ["is no usable tokenizer"]),
    "another tokenizer": (_other_tokenizer, "", ["the tokenizer gives id 96; the model knows 96"]),
    "a short text": (
        lambda folder: (folder.parent / "t").write_text("the cat"),
        "",
        ["the calibration text has 7 tokens; one sample takes 31"],
    ),
    "an empty text": (lambda folder: (folder.parent / "t").write_text(""), "", ["the calibration text has 0 tokens"]),
    "long sequences": (lambda folder: None, "--max-seq-length 128", ["sequences of 128 tokens are longer than the model's context, 64"]),
    "an override of nothing": (lambda folder: None, "--override layers.9.*=8a8w", ["override 'layers.9.*' names no layer"]),
    "params of others": (
        lambda folder: (folder / "p.json").touch(),
        "--params {c}/p.json",
        ["has 0 .pth files, expected one", "do without"],
    ),
}


@pytest.mark.parametrize("name", LATE)
def test_bad_input(name: str, tmp_path: Path) -> None:
    happens, further, parts = LATE[name]
    save_tokenizer(exported.tokenizer(), tiny.save_hugging_face("llama", tmp_path / "c"))
    (tmp_path / "t").write_text("the cat sat on the mat " * 40)
    happens(tmp_path / "c")
    command = f"export --checkpoint {{c}} --pt2e-quantize vgf_8a8w --calibration-text {{t}} {SMALL} -o {{o}} {further}"
    result = cli(*arguments(command, tmp_path, tmp_path / "o"))
    assert result.exit_code == 2 and result.stdout == "", result.stderr
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr
    assert not (tmp_path / "o" / "llm.json").exists()
