"""ExecuTorch's Arm VGF backend on a language model: the peer's half of `language.py`.

    python benchmarks/peer_language.py FOLDER 8a8w|16a8w [--scope full|linear] [--observer histogram|min-max] [--lower]

FOLDER holds what `language.py` hands over: the float program (`float.pt2`: token ids [1,P], position [1] and caches to logits [1,P,V] and
caches) and token ids (`tokens.npz`: `calibration` and `scored`, [N,L] each). Runs in the peer's environment, leaves there the logits of the
scored tokens, float32 [N L,V], in `fake.npy` and, where it lowers, in `artifact.npy`, and prints one JSON line.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peer_models import compile_spec_of, interpreter, lowered, made, message, quantized
from shared import SPECS, Stopwatch, claim_stdout, peak_memory_mb, specification, write_result

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def through(step: Callable[..., Sequence[Tensor]], sequences: np.ndarray, example: tuple[Tensor, ...]) -> Iterator[Tensor]:
    """Logits [P,V] of sequences [N,L], P tokens at a time, each sequence from empty caches.

    Args:
        step: token ids, position and caches to logits and caches; `example` are such inputs, caches empty.
    """
    import torch

    size = example[0].shape[1]
    for ids in torch.as_tensor(sequences):
        caches: Sequence[Tensor] = example[2:]
        for at in range(0, len(ids), size):
            logits, *caches = step(ids[None, at : at + size], torch.tensor([at]), *caches)
            yield logits[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("scheme", choices=SPECS)
    parser.add_argument("--scope", choices=("full", "linear"), default="full")
    parser.add_argument("--observer", choices=("histogram", "min-max"), default="histogram", help="of activations")
    parser.add_argument("--lower", action="store_true", help="make .vgf files too, and run them on the TOSA reference model")
    options = parser.parse_args()
    stdout = claim_stdout()

    import numpy as np
    import torch

    compile_spec, watch = compile_spec_of(specification(options.scheme, options.scope), options.folder / "vgf"), Stopwatch()
    program, tokens = torch.export.load(options.folder / "float.pt2"), np.load(options.folder / "tokens.npz")
    example = program.example_inputs[0]

    def keep(name: str, step: Callable[..., Sequence[Tensor]]) -> None:
        with torch.no_grad():
            np.save(options.folder / f"{name}.npy", torch.cat(list(through(step, tokens["scored"], example))).numpy())

    def calibrate(prepared: Callable[..., Sequence[Tensor]]) -> None:
        for _ in through(prepared, tokens["calibration"], example):
            pass

    result: dict[str, Any] = {"name": f"ExecuTorch {version('executorch')}"}
    stage = "quantize"
    try:
        with watch.stage("quantize"):
            module = program.module(check_guards=False)
            converted = quantized(module, options.scheme, compile_spec, calibrate, options.scope, options.observer)
        stage = "run"
        keep("fake", converted)
        if options.lower:
            stage = "lower"
            with watch.stage("lower"):
                edge = lowered(converted, example, compile_spec)
            result |= made(edge, options.folder / "vgf")
            stage = "run"
            run = interpreter(edge, options.folder / "vgf")
            keep("artifact", lambda *inputs: run(inputs))
    except Exception as failure:  # whatever it is, that the peer fails is a result
        result["failed"] = message(stage, failure)
    result |= {"seconds": watch.seconds, "processors": watch.processors, "peak_memory_mb": peak_memory_mb()}
    write_result(stdout, result)


if __name__ == "__main__":
    main()
