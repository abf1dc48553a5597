"""Tosaic on one of the whole models of `tests/zoo_models.py`: our half of `models.py`.

    python benchmarks/ours_models.py MODEL 8a8w|16a8w [--spec SPEC] [--output FILE.vgf] [--held-out N]

Prints one JSON line. The score is that of the `.vgf`: it is loaded again from disk and run by the simulator.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from shared import SPECS, claim_stdout, processor_seconds, sqnr_db, write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("scheme", choices=SPECS)
    parser.add_argument("--spec", help="default: the smallest that holds the scheme")
    parser.add_argument("--output", type=Path, help="the .vgf to write (default: a temporary file)")
    parser.add_argument("--held-out", type=int, default=None, metavar="N", help="score on N samples only; 0 counts operators only")
    arguments = parser.parse_args()
    stdout = claim_stdout()

    import torch

    import tosaic

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from zoo_models import CALIBRATION, CASES

    case = CASES[arguments.model]
    model, samples = case.build(), case.samples()
    held_out = samples[CALIBRATION:][: arguments.held_out]
    result: dict[str, Any] = {"name": "Tosaic", "spec": arguments.spec or SPECS[arguments.scheme]}
    stage = "quantize"
    try:
        with torch.no_grad():
            expected = [model(*sample) for sample in held_out]
        quantized = tosaic.quantize(model, samples[0], samples[:CALIBRATION], scheme=arguments.scheme)
        result["seconds"] = quantized.timings
        if held_out:
            result["float_rms"] = float(torch.stack(expected).double().square().mean().sqrt())
            result["fake_sqnr_db"] = sqnr_db(torch.stack(expected), torch.stack([_first(quantized(*sample)) for sample in held_out]))
        stage = "compile"
        start, processor = time.perf_counter(), processor_seconds()
        artifact = tosaic.compile(quantized, spec=result["spec"])
        stage = "save"
        with tempfile.TemporaryDirectory() as temporary:
            path = arguments.output or Path(temporary) / "model.vgf"
            path.parent.mkdir(parents=True, exist_ok=True)
            artifact.save(path)
            result |= {"back_end": time.perf_counter() - start, "back_end_processor": processor_seconds() - processor}
            result["file_bytes"] = path.stat().st_size
            operators = Counter(op.NAME for op in artifact.graph.ops)
            result |= {
                "seconds": {**quantized.timings, **artifact.timings},
                "operators": dict(operators.most_common()),
                "operator_count": operators.total(),
                "rescales": operators["RESCALE"],
            }
            if held_out:
                stage = "run"
                loaded = tosaic.load(path)
                found = [torch.as_tensor(loaded.run(sample, on="simulator", float_io=True)[0]) for sample in held_out]
                result["sqnr_db"] = sqnr_db(torch.stack(expected), torch.stack(found))
    except Exception as error:
        result["failed"] = f"{stage}: {type(error).__name__}: {str(error).strip()}"
    write_result(stdout, result)


def _first(result: Any) -> Any:
    return result[0] if isinstance(result, tuple | list) else result


if __name__ == "__main__":
    main()
