"""SmolLM2-135M-Instruct: perplexity and speed of export folders beside the float model, and ExecuTorch's Arm VGF backend beside them.

    python benchmarks/language.py [FOLDER ...] [--chunks 16] [--novel sensesensibility]
    python benchmarks/language.py --peer     the whole model as ExecuTorch's quantizer makes it, in fake quantization (its scores are kept)
    python benchmarks/language.py --slice    two layers by Tosaic and by ExecuTorch, to .vgf: SQNR of their logits, operators, seconds

The folders are those that `tosaic llm export` wrote. Scores are of whole chunks of 512 tokens, of a novel that was not calibrated on.
The peer gets the float program that the prefill artifact is made of, and the calibration tokens of an export with default settings. Its
scores are kept in `.cache/benchmark/peer`, since they take minutes; they are used as long as weights and tokens are the same.

ExecuTorch quantizes in the two scopes that its export of language models has, full and linear. In the scope full, norms are handed over in
both forms in which models have them: `spelled`, x * rsqrt(mean(x * x) + eps) * weight, as Hugging Face's models and ExecuTorch's own write
them, and `whole`, the one operator aten.rms_norm, which ExecuTorch 1.5.1 neither quantizes nor takes into a .vgf: it stays float, on the
CPU between several files. Tosaic's result is the same for both. Its histogram observers leave out the rare large values that such models
live by; so it is also shown with min-max observers, which a user would have to know of.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import OUTPUT, peer_python
from models import run
from peer_language import through
from shared import SPECS, Stopwatch, specification, sqnr_db
from torch import Tensor, nn

import tosaic
from tosaic import zoo
from tosaic.assembly import Piece, assemble
from tosaic.llm.chain import Streams, calibrations, samples_of
from tosaic.llm.checkpoint import Checkpoint, open_checkpoint
from tosaic.llm.decoder import Decoder, RmsNorm
from tosaic.llm.generate import generate
from tosaic.llm.parts import quantize_part
from tosaic.llm.score import Score, cut, float_model, perplexity, score
from tosaic.llm.session import Session
from tosaic.llm.settings import Settings
from tosaic.llm.tokenizer import open_tokenizer
from tosaic.quantization.schemes import SCOPES

QUESTION = "What is the capital of France?"
CALIBRATION = "emma"
CHUNK, PEER_CHUNKS, PEER_LIMIT = 512, 4, 7200  # tokens; chunks that the peer is scored on; seconds
LAYERS, TOKENS, LENGTH, SEQUENCES = 2, 64, 128, 2  # of the slice; the reference model takes seconds for one run of the head
# how the peer's runs differ: form of the norms, scope, observer of activations
PEER_VARIANTS = {
    "norms spelled": ("spelled", "full", "histogram"),
    "norms whole": ("whole", "full", "histogram"),
    "scope linear": ("whole", "linear", "histogram"),
    "norms spelled, min-max": ("spelled", "full", "min-max"),
    "norms whole, min-max": ("whole", "full", "min-max"),
    "scope linear, min-max": ("whole", "linear", "min-max"),
}
SLICED = ("norms spelled", "norms whole", "scope linear")  # the observer decides no operator


class SpelledNorm(RmsNorm):
    """The same function in primitive operators."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.weight


class Prefill(nn.Module):
    """Token ids [1,P], position [1] and caches to logits of all positions and caches."""

    def __init__(self, decoder: Decoder, form: str) -> None:
        super().__init__()
        self.decoder = decoder
        for module in decoder.modules():
            if form == "spelled" and isinstance(module, RmsNorm):
                module.__class__ = SpelledNorm

    def forward(self, ids: Tensor, position: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        return self.decoder(ids, position, position, *caches)

    def example(self, tokens: int) -> tuple[Tensor, ...]:
        """Inputs of P tokens, caches empty."""
        return torch.zeros(1, tokens, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), *self.decoder.empty_caches()


def exports(folders: list[Path], text: str, chunks: int) -> None:
    """One line for each export folder."""
    for folder in folders:
        scores = perplexity(folder, text, checkpoint=zoo.smollm2(), limit=chunks)
        session = Session(folder)
        generate(session, QUESTION, max_new_tokens=2)  # compiles kernels
        said = generate(session, QUESTION, max_new_tokens=48)
        speeds = (f"{said.prefill_speed:.1f}", f"{said.decode_speed:.1f}", said.text.strip().replace("\n", " ")[:80])
        line(folder.name, *cells(scores["float"], scores["artifacts"]), *speeds)


def cells(base: Score, made: Score) -> tuple[str, ...]:
    assert made.change is not None
    return (
        f"{made.perplexity:.4g} ± {made.standard_error:.2g} (float {base.perplexity:.2f})",
        f"{made.change:+.2%} ± {made.change_error:.2%}" if made.change < 10 else f"x {1 + made.change:.3g}",
        f"{made.kl:.4f}",
        f"{made.top1:.1%}",
        f"{made.tokens}",
    )


def line(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def peers(checkpoint: Checkpoint, text: str, chunks: int, refresh: bool) -> None:
    """One line for each scheme and variant: the peer's fake quantization of the whole model, in PyTorch."""
    settings = Settings("vgf_8a8w")
    tokenizer = open_tokenizer(checkpoint)
    calibration = samples_of(settings, tokenizer, zoo.novel(CALIBRATION), checkpoint.config.vocabulary)
    scored = cut(text, tokenizer, CHUNK, chunks)
    sizes = f"{settings.prefill_chunk} {settings.max_seq_length}"
    key = hashlib.sha256(f"{checkpoint.digest()} {sizes}".encode() + calibration.tobytes() + scored.numpy().tobytes()).hexdigest()
    for (variant, (form, *how)), scheme in itertools.product(PEER_VARIANTS.items(), SPECS):
        file = OUTPUT / "peer" / f"smollm2-{'-'.join((form, *how, scheme))}.json"
        result = json.loads(file.read_text()) if file.exists() and not refresh else {}
        if result.get("key") != key:
            with tempfile.TemporaryDirectory(dir=OUTPUT) as temporary:
                folder = Path(temporary)
                hand_over(checkpoint, form, settings.prefill_chunk, settings.max_seq_length, calibration, scored.numpy(), folder)
                result = peer(folder, scheme, *how) | {"key": key}
                if "failed" not in result:
                    logits = np.load(folder / "fake.npy", mmap_mode="r")
                    found = score(scored, {"float": float_model(checkpoint), "peer": lambda _, logits=logits: blocks(logits)})
                    result["scores"] = {name: asdict(each) for name, each in found.items()}
            file.write_text(json.dumps(result))
        found = [Score(**each) for each in result.get("scores", {}).values()]
        said = [*cells(*found), "", "", ""] if found else [result["failed"]]
        line(f"{result.get('name', 'ExecuTorch')} {scheme}, {variant}, fake quantization", *said)


def peer(folder: Path, scheme: str, scope: str, observer: str, *options: str) -> dict[str, Any]:
    how = ("--scope", scope, "--observer", observer, *options)
    return run(str(peer_python()), "peer_language.py", str(folder), scheme, *how, limit=PEER_LIMIT)


def blocks(logits: np.ndarray, size: int = 64) -> Iterator[Tensor]:
    for at in range(0, len(logits), size):
        yield torch.from_numpy(np.array(logits[at : at + size]))


def hand_over(
    checkpoint: Checkpoint, form: str, tokens: int, length: int, calibration: np.ndarray, scored: np.ndarray, folder: Path
) -> None:
    """Write what `peer_language.py` reads."""
    prefill = Prefill(checkpoint.decoder(tokens, length), form).eval()
    with torch.no_grad():
        program = torch.export.export(prefill, prefill.example(tokens))
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.index_copy.default):
        # ExecuTorch's own models write caches in both ways; in the scope linear its passes give index_copy indices that it does not take
        caches, _, rows, new = node.args
        node.target, node.args = torch.ops.aten.index_put.default, (caches, [None, rows], new)
    torch.export.save(program, folder / "float.pt2")
    np.savez(folder / "tokens.npz", calibration=calibration, scored=scored)


def slices(checkpoint: Checkpoint, text: str) -> None:
    """Two layers, of both sides, to the artifact."""
    checkpoint.config = replace(checkpoint.config, layers=LAYERS)
    tokenizer = open_tokenizer(checkpoint)
    scored = cut(text, tokenizer, LENGTH, SEQUENCES).numpy()
    prefill = Prefill(checkpoint.decoder(TOKENS, LENGTH), "whole")
    with torch.no_grad():
        expected = torch.cat(list(through(prefill, scored, prefill.example(TOKENS))))
    line("two layers", "SQNR of logits, dB", "fake quantization", ".vgf files", "operators", "left to the CPU", "quantize, s", "-> .vgf, s")
    print("|" + "---|" * 8)
    for scheme in SPECS:
        for scope in SCOPES:
            options = {"max_seq_length": LENGTH, "prefill_chunk": TOKENS, "full_logits": True}
            settings = Settings(f"vgf_{scheme}", scope, specification(scheme, scope), **options)
            calibration = samples_of(settings, tokenizer, zoo.novel(CALIBRATION), checkpoint.config.vocabulary)
            with tempfile.TemporaryDirectory() as temporary:
                result = ours(checkpoint, settings, calibration, scored, prefill.example(TOKENS), Path(temporary))
                slice_line(f"{scheme}, scope {scope}", result, Path(temporary), expected)
        for variant in SLICED:
            form, *how = PEER_VARIANTS[variant]
            with tempfile.TemporaryDirectory() as temporary:
                hand_over(checkpoint, form, TOKENS, LENGTH, calibration, scored, Path(temporary))
                slice_line(f"{scheme}, {variant}", peer(Path(temporary), scheme, *how, "--lower"), Path(temporary), expected)


def slice_line(what: str, result: dict[str, Any], folder: Path, expected: Tensor) -> None:
    """Processor seconds, since a busy machine disturbs them less."""
    files = [folder / f"{name}.npy" for name in ("artifact", "fake")]
    scores = [f"{sqnr_db(expected, torch.from_numpy(np.load(file))):.1f}" if file.exists() else "-" for file in files]
    left = ", ".join(f"{count} {name.split('.')[-2]}" for name, count in result.get("left_over", {}).items())
    seconds = [f"{result['processors'][s]:.1f}" if s in result.get("processors", {}) else "-" for s in ("quantize", "lower")]
    counts = (result.get("delegates", "-"), result.get("operator_count", "-"))
    line(f"{result.get('name', 'ExecuTorch')} {what}", *scores, *counts, left, *seconds)
    if "failed" in result:
        print(f"  {what}: {result['failed']}", file=sys.stderr)


def ours(
    checkpoint: Checkpoint, settings: Settings, calibration: np.ndarray, scored: np.ndarray, example: tuple[Tensor, ...], folder: Path
) -> dict[str, Any]:
    """The prefill program as `tosaic llm export` makes it, in the two stages that the peer has; logits go where the peer leaves them."""
    watch, made = Stopwatch(), []
    with watch.stage("quantize"):
        for part, choice, samples in calibrations(checkpoint, settings, calibration, Streams()):
            made.append((part, quantize_part(part, choice, settings.spec, samples)))
    with watch.stage("lower"):
        pieces = []
        for part, quantized in made:
            artifact = tosaic.compile(quantized, spec=settings.spec, name=part.name)
            own = [port.name for port in artifact.passport.outputs]
            pieces.append(Piece(artifact, part.name, part.inputs, dict(zip(own, part.outputs, strict=True))))
        outputs = ["logits", *(f"{kind}_{i}_out" for i in range(checkpoint.config.layers) for kind in ("keys", "values"))]
        assemble("prefill", pieces, outputs, settings.spec).save(folder / "prefill.vgf")
    loaded = tosaic.load(folder / "prefill.vgf")
    names = ["ids", "position", *(name.removesuffix("_out") for name in outputs[1:])]

    def step(*inputs: Tensor) -> list[Tensor]:
        given = dict(zip(names, inputs, strict=True))
        return [torch.as_tensor(each) for each in loaded.run([given[port.name] for port in loaded.passport.inputs], float_io=True)]

    def fake(ids: Tensor, position: Tensor, *caches: Tensor) -> list[Tensor]:
        (_, start), *layers, (_, end) = made
        x, updated = start(ids), []
        for index, (_, layer) in enumerate(layers):
            x, *new = layer(x, position, *caches[2 * index : 2 * index + 2])
            updated += new
        return [end(x), *updated]

    for name, model in (("artifact", step), ("fake", fake)):
        np.save(folder / f"{name}.npy", torch.cat(list(through(model, scored, example))).numpy())
    operators = Counter(op.NAME for op in loaded.graph.ops)
    return {"name": "Tosaic", "delegates": 1, "operator_count": operators.total(), "processors": watch.processors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--novel", default="sensesensibility", choices=sorted(zoo.NOVELS))
    parser.add_argument("--peer", action="store_true", help="score what ExecuTorch's quantizer makes of the whole model")
    parser.add_argument("--peer-chunks", type=int, default=PEER_CHUNKS)
    parser.add_argument("--refresh-peer", action="store_true", help="measure the peer again")
    parser.add_argument("--slice", action="store_true", help="compare two layers with ExecuTorch")
    options = parser.parse_args()
    if not (options.folders or options.peer or options.slice):
        parser.error("give export folders, --peer or --slice")
    text = zoo.novel(options.novel)
    (OUTPUT / "peer").mkdir(parents=True, exist_ok=True)
    if options.folders or options.peer:
        line("model", "perplexity", "to float", "KL", "top-1", "tokens", "prefill, tokens/s", "decode, tokens/s", "answer")
        print("|" + "---|" * 9, flush=True)
    exports(options.folders, text, options.chunks)
    if options.peer:
        peers(open_checkpoint(zoo.smollm2()), text, options.peer_chunks, options.refresh_peer)
    if options.slice:
        slices(open_checkpoint(zoo.smollm2()), text)


if __name__ == "__main__":
    main()
