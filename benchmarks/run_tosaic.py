"""Tosaic on MobileNetV2, 8a8w: our half of the benchmark, in a fresh process. Prints one JSON line.

The score is that of the `.vgf`: it is loaded again from disk and run by the simulator.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from shared import CALIBRATION, HELD_OUT, Stopwatch, claim_stdout, peak_memory_mb, score, write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="the .vgf to write (default: a temporary file)")
    arguments = parser.parse_args()
    stdout = claim_stdout()

    watch = Stopwatch()
    with watch.stage("imports"):
        import torch

        import tosaic
        from tosaic import compile, quantize  # the package imports late; this is what makes it import the stages
        from tosaic.quantization.ptq import Stopwatch as Stages

    peaks = {"imports": peak_memory_mb()}

    def lap(stages: Stages, stage: str) -> None:
        timed(stages, stage)
        peaks[stage] = peak_memory_mb()

    timed, Stages.lap = Stages.lap, lap  # type: ignore[method-assign]

    from tosaic import zoo

    model = zoo.mobilenet_v2()
    images, labels = zoo.imagenet_images()

    with tempfile.TemporaryDirectory() as temporary:
        path = arguments.output or Path(temporary) / "mobilenet_v2.vgf"
        path.parent.mkdir(parents=True, exist_ok=True)
        calibration = [(images[index : index + 1],) for index in CALIBRATION]
        with watch.stage("front end"):
            quantized = quantize(model, (images[:1],), calibration, scheme="8a8w")
        with watch.stage("back end"):
            artifact = compile(quantized, spec="TOSA-1.0+INT")
            artifact.save(path)
        peaks["emit"] = peak_memory_mb()

        held_out = images[HELD_OUT.start : HELD_OUT.stop]
        with torch.no_grad():
            expected = zoo.mobilenet_v2()(held_out)
        total = sum(watch.seconds.values())
        seconds = {"imports": watch.seconds["imports"], **quantized.timings, **artifact.timings}
        seconds["other"] = max(total - sum(seconds.values()), 0.0)
        loaded = tosaic.load(path)
        outputs = [loaded.run((image,), on="simulator", float_io=True)[0] for image in held_out.split(1)]
        logits = torch.cat([torch.as_tensor(output) for output in outputs])
        operators = Counter(op.NAME for op in artifact.graph.ops)
        result = {
            "name": "Tosaic",
            "seconds": seconds,
            "back_end": watch.seconds["back end"],
            "total": total,
            "processor_seconds": watch.processor,
            "peak_memory_mb": peaks["emit"],
            "peaks": peaks,
            "file_bytes": path.stat().st_size,
            "operators": dict(operators.most_common()),
            "operator_count": operators.total(),
            "score": score(expected, logits, labels[HELD_OUT.start : HELD_OUT.stop]),
            "scored_with": "simulator on the .vgf",
        }
    write_result(stdout, result)


if __name__ == "__main__":
    main()
