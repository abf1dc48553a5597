"""Time of the simulator against float PyTorch: MobileNetV2, batch 1, one process, default threads. Prints one JSON line.

The simulator computes every integer of the artifact exactly; the question is what that costs over running the float model.
The two take turns, so that a disturbance meets both, and the medians are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from shared import CALIBRATION, claim_stdout, write_result

RUNS, WARM_UP = 10, 3


def medians(*functions: Callable[[], object], runs: int = RUNS, warm_up: int = WARM_UP) -> list[float]:
    """Median seconds of each function, called in turn; the first `warm_up` rounds (JIT, caches) are not counted."""
    seconds: list[list[float]] = [[] for _ in functions]
    for index in range(warm_up + runs):
        for function, times in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            if index >= warm_up:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, nargs="?", help="MobileNetV2 as a .vgf (default: compile it first)")
    arguments = parser.parse_args()
    stdout = claim_stdout()

    import torch

    import tosaic
    from tosaic import zoo

    model = zoo.mobilenet_v2()
    images, _ = zoo.imagenet_images()
    image = images[:1]
    if arguments.file:
        artifact = tosaic.load(arguments.file)
    else:
        calibration = [(images[index : index + 1],) for index in CALIBRATION]
        artifact = tosaic.compile(tosaic.quantize(model, (image,), calibration, scheme="8a8w"), spec="TOSA-1.0+INT")
        model = zoo.mobilenet_v2()  # capture is free to fold things in the one it was given

    with torch.no_grad():
        simulator, eager = medians(lambda: artifact.run((image,), on="simulator", float_io=True), lambda: model(image))
    write_result(stdout, {"simulator": simulator, "eager": eager, "ratio": simulator / eager, "threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
