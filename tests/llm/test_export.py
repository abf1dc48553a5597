"""The export of language models: both programs compute the same, equal to the reference model, and near to the float model."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from llm import export_folders as e
from llm import tiny

import tosaic
from tosaic.errors import InputError
from tosaic.llm import export as module
from tosaic.llm.checkpoint import open_checkpoint
from tosaic.tosa import ops

IDS = np.random.default_rng(0).integers(3, tiny.VOCABULARY, (1, 24))
# architecture, mode, specification, least SQNR of logits in dB: random weights of 32 channels, which int8 rounds to 40 dB
CASES = [
    ("llama-tied", None, "", 100.0),
    ("llama-tied", "vgf_16a8w", e.INT16, 18.0),
    ("llama3", "vgf_8a8w", "", 18.0),
    ("qwen3", "vgf_8a8w", "", 18.0),
    ("gemma3", "vgf_16a8w", e.INT16, 18.0),
    ("gemma2", "vgf_8a8w", "", 12.0),
]


def programs(folder: Path) -> tuple[tosaic.Artifact, tosaic.Artifact]:
    return tosaic.load(folder / "prefill.vgf"), tosaic.load(folder / "decode.vgf")


@pytest.mark.parametrize(("name", "mode", "spec", "least"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_decode_after_prefill_is_prefill_of_the_longer_text(name: str, mode: str | None, spec: str, least: float) -> None:
    folder = e.exported(name, mode, spec)
    prefill, decode = programs(folder.folder)
    whole, mixed = e.Caches(folder), e.Caches(folder)
    expected = [whole.call(prefill, IDS[:, at : at + e.CHUNK], at) for at in range(0, 24, e.CHUNK)]
    found = mixed.call(prefill, IDS[:, : e.CHUNK], 0)
    for at in range(e.CHUNK, 24):
        found = mixed.call(decode, IDS[:, at : at + 1], at)
        if at % e.CHUNK == e.CHUNK - 1:
            tolerance = 0.0 if mode else 1e-4  # float sums have another order
            np.testing.assert_allclose(found, expected[at // e.CHUNK], rtol=0, atol=tolerance)
    for a, b in zip(whole.arrays, mixed.arrays, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=0.0 if mode else 1e-4)
    scale = next(p for p in prefill.passport.outputs if p.name == "logits").scale or 1.0
    reference = tiny.logits(name, torch.from_numpy(IDS))[0, -1].numpy().astype(np.float64)
    noise = found[0, 0] * scale - reference
    assert 10 * np.log10((reference**2).sum() / (noise**2).sum()) > least


@pytest.mark.parametrize(("name", "mode", "spec", "least"), CASES[1:4], ids=[f"{c[0]}-{c[1]}" for c in CASES[1:4]])
def test_equal_to_the_reference_model(name: str, mode: str, spec: str, least: float, reference: Run) -> None:
    folder = e.exported(name, mode, spec)
    caches = e.Caches(folder)
    for program, at, count in zip(programs(folder.folder), (0, e.CHUNK), (e.CHUNK, 1), strict=True):
        inputs = caches.inputs(program, IDS[:, at : at + count], at)
        found = program.run(inputs, float_io=False)
        for a, b in zip(found, reference(program.graph, inputs), strict=True):
            np.testing.assert_array_equal(a, b)
        caches.arrays = found[1:]


def test_all_positions_on_request() -> None:
    one, full = (e.exported("llama3", "vgf_8a8w", full_logits=full) for full in (False, True))
    last = e.Caches(one).call(programs(one.folder)[0], IDS[:, : e.CHUNK], 0)
    every = e.Caches(full).call(programs(full.folder)[0], IDS[:, : e.CHUNK], 0)
    assert every.shape == (1, e.CHUNK, tiny.VOCABULARY)
    np.testing.assert_array_equal(every[:, -1:], last)


class Stopped(Exception):
    pass


def test_an_interrupted_export_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    """Also on another number of threads, on which torch sums up in another order: it goes on with as many as it began."""
    checkpoint = open_checkpoint(e.checkpoint("llama3"))
    own, threads = torch.get_num_threads(), set()

    def export(resume: bool, stop: str = "", seen: list[str] | None = None, **options: object) -> None:
        def progress(what: str, done: int, total: int) -> None:
            if what != "files":
                threads.add(torch.get_num_threads())
            if what == stop:
                raise Stopped
            if seen is not None and not work.has_all(done):
                seen.append(what)

        class work:
            @staticmethod
            def has_all(done: int) -> bool:
                return len(list((tmp_path / module.WORK).glob("*.part"))) > done

        module.export(checkpoint, e.settings("vgf_8a8w", **options), e.tokenizer(), e.TEXT, tmp_path, resume=resume, progress=progress)

    with pytest.raises(Stopped):
        export(False, stop="layers.1")
    assert not (tmp_path / "llm.json").exists()
    for options in ({"smoothing": False}, {"rotation": False}):
        with pytest.raises(InputError, match="belongs to an export of another checkpoint, with other options or versions, or on another"):
            export(True, **options)
    seen: list[str] = []
    torch.set_num_threads(own + 1)
    try:
        export(True, seen=seen)
        assert threads == {own} and torch.get_num_threads() == own + 1
    finally:
        torch.set_num_threads(own)
    assert seen == ["layers.1", "end", "files"]  # and not the start and the first layer
    assert not (tmp_path / module.WORK).exists()
    whole = e.exported("llama3", "vgf_8a8w").folder
    for file in ("prefill.vgf", "decode.vgf", "prefill.json", "decode.json", "tokenizer.json"):
        assert hashlib.sha256((tmp_path / file).read_bytes()).digest() == hashlib.sha256((whole / file).read_bytes()).digest(), file


@pytest.mark.parametrize(
    ("options", "text", "message"),
    [
        ({}, "short", "the calibration text has 5 tokens; one sample takes 32"),
        ({}, None, "vgf_8a8w needs text to calibrate on"),
        ({"calibration_seq_length": 12}, e.TEXT, "12 is no multiple of the prefill chunk"),
        ({"overrides": {"layers.7.*": "8a8w"}}, e.TEXT, r"override 'layers\.7\.\*' names no layer"),
        ({"max_seq_length": 128}, e.TEXT, "128"),
    ],
)
def test_what_does_not_fit_the_checkpoint(options: dict[str, object], text: str | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        module.export(open_checkpoint(e.checkpoint("llama3")), e.settings("vgf_8a8w", **options), e.tokenizer(), text, tmp_path)
    assert not any(tmp_path.iterdir())


def test_without_a_tokenizer(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(e.checkpoint("llama3"))
    with pytest.raises(InputError, match="has no tokenizer"):
        module.export(checkpoint, e.settings("vgf_8a8w"), None, e.TEXT, tmp_path)
    assert module.export(checkpoint, e.settings(None), None, None, tmp_path).manifest.tokenizer is None  # float needs no text


def test_one_layer_in_another_precision(tmp_path: Path) -> None:
    overrides = {"layers.1.mlp.down_proj": "fp32", "lm_head": "fp32"}
    spec = "TOSA-1.0+INT+FP"
    made = module.export(
        open_checkpoint(e.checkpoint("llama3")), e.settings("vgf_8a8w", spec=spec, overrides=overrides), e.tokenizer(), e.TEXT, tmp_path
    )
    rows = {row.name: row.precision for row in programs(made.folder)[0].passport.ledger if "linear" in row.aten}
    floats = [name for name, precision in rows.items() if precision == "fp32"]
    assert len(floats) == 2 and floats[0].startswith("layers.1.") and floats[1].startswith("end.")


def test_layers_of_two_digits(reference: Run, tmp_path: Path) -> None:
    """16 bits for what enters some layers, in the base profile: both programs equal the reference model and go on from one another."""
    made = module.export(
        open_checkpoint(e.checkpoint("llama3")),
        e.settings("vgf_8a8w", overrides={"layers.*.mlp.down_proj": "16a8w-digits"}, rotation=False),
        e.tokenizer(),
        e.TEXT,
        tmp_path,
    )
    caches, whole = e.Caches(made), e.Caches(made)
    prefill, decode = programs(made.folder)
    assert prefill.passport.spec == decode.passport.spec == "TOSA-1.0+INT"
    for program, at, count in ((prefill, 0, e.CHUNK), (decode, e.CHUNK, 1)):
        # the sums over two digits, of two layers and of the head; no other operator sums up along that axis
        assert sum(isinstance(n.op, ops.ReduceSum) and n.inputs[0].shape[:2] == (1, 2) for n in program.graph.nodes) == 3
        feed = caches.inputs(program, IDS[:, at : at + count], at)
        found = program.run(feed, float_io=False)
        for a, b in zip(found, reference(program.graph, feed), strict=True):
            np.testing.assert_array_equal(a, b)
        caches.arrays = found[1:]
    for at in (0, e.CHUNK):
        expected = whole.call(prefill, IDS[:, at : at + e.CHUNK], at)
    for at in range(e.CHUNK + 1, 2 * e.CHUNK):
        found = caches.call(decode, IDS[:, at : at + 1], at)
    np.testing.assert_array_equal(found, expected)
