"""ExecuTorch's Arm VGF backend on MobileNetV2, 8a8w: the peer's half of the benchmark.

Runs in an environment of its own, which `bench.py` makes; prints one JSON line. The steps are those of ExecuTorch's
`examples/arm/vgf_minimal_example.ipynb` with its default quantizer settings (int8 per-channel weights, int8 activations,
histogram observers). It stops when the `.vgf` is there: the `.pte` around it is not part of the job, and not timed.

The score is that of the artifact: the TOSA file from which the backend makes the `.vgf`, run on Arm's TOSA reference model
with the input and output scales that the backend leaves in the program around the delegate.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from shared import CALIBRATION, HELD_OUT, Stopwatch, claim_stdout, score, write_result

if TYPE_CHECKING:
    from executorch.exir import EdgeProgramManager
    from torch import Tensor


def import_zoo() -> ModuleType:
    """`tosaic.zoo` from the source tree: the same model and images, without installing or running the rest of Tosaic here."""
    package = ModuleType("tosaic")
    package.__path__ = [str(Path(__file__).parents[1] / "src" / "tosaic")]
    sys.modules["tosaic"] = package
    from tosaic import zoo

    return zoo


def run_tosa(path: Path, edge: EdgeProgramManager, images: Tensor) -> Tensor:
    """Logits [N,classes] of a `.tosa` file on float images [N,3,H,W], one at a time, on the TOSA reference model."""
    import numpy as np
    import torch
    import tosa_reference_model

    quantize, dequantize = _boundary(edge, "quantize_per_tensor"), _boundary(edge, "dequantize_per_tensor")
    tosa, outputs = path.read_bytes(), []
    for image in images.split(1):
        codes = torch.ops.quantized_decomposed.quantize_per_tensor(image, *quantize).numpy()
        [raw], status = tosa_reference_model.run(tosa, [codes])
        if status != tosa_reference_model.GraphStatus.TOSA_VALID:
            raise RuntimeError(f"the TOSA reference model says {status.name} of {path}")
        logits = torch.from_numpy(np.frombuffer(np.asarray(raw).tobytes(), np.int8).copy()).reshape(1, -1)
        outputs.append(torch.ops.quantized_decomposed.dequantize_per_tensor(logits, *dequantize))
    return torch.cat(outputs)


def _boundary(edge: EdgeProgramManager, name: str) -> tuple:
    """The arguments (scale, zero point, minimum, maximum, dtype) of the one q or dq operator left around the delegate."""
    nodes = edge.exported_program().graph_module.graph.nodes
    [node] = [n for n in nodes if n.op == "call_function" and n.target.__name__.startswith(f"quantized_decomposed.{name}")]
    return node.args[1:6]


def tosa_operators(path: Path) -> dict[str, int]:
    """How often each operator stands in a `.tosa` file, without the constants."""
    from tosa import Op, TosaGraph

    names = {code: name for name, code in vars(Op.Op).items() if not name.startswith("_")}
    graph = TosaGraph.TosaGraph.GetRootAs(path.read_bytes(), 0)
    blocks = [region.Blocks(b) for region in map(graph.Regions, range(graph.RegionsLength())) for b in range(region.BlocksLength())]
    counts = Counter(names[block.Operators(o).Op()] for block in blocks for o in range(block.OperatorsLength()))
    return {name: count for name, count in counts.most_common() if name not in ("CONST", "CONST_SHAPE")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="where to leave the .vgf and .tosa (default: a temporary folder)")
    arguments = parser.parse_args()
    stdout = claim_stdout()
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"  # the backend looks for model-converter there

    watch = Stopwatch()
    with watch.stage("imports"):
        import torch
        from executorch.backends.arm.quantizer import VgfQuantizer, get_symmetric_quantization_config
        from executorch.backends.arm.vgf import VgfCompileSpec, VgfPartitioner
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    zoo = import_zoo()
    model = zoo.mobilenet_v2()
    images, labels = zoo.imagenet_images()
    example_inputs = (images[:1],)

    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("*_tag*"):
            stale.unlink()
        compile_spec = VgfCompileSpec("TOSA-1.0+INT")
        compile_spec.dump_intermediate_artifacts_to(str(folder))  # the backend's way to hand out the bare .vgf

        with watch.stage("capture"):
            module = torch.export.export(model, example_inputs).module(check_guards=False)
        with watch.stage("quantize"):
            quantizer = VgfQuantizer(compile_spec)
            quantizer.set_global(get_symmetric_quantization_config())
            prepared = prepare_pt2e(module, quantizer)
            with torch.no_grad():
                for index in CALIBRATION:
                    prepared(images[index : index + 1])
            converted = convert_pt2e(prepared)
        with watch.stage("lower"):
            program = torch.export.export(converted, example_inputs)
            config = EdgeCompileConfig(_check_ir_validity=False)
            edge = to_edge_transform_and_lower(program, partitioner=[VgfPartitioner(compile_spec)], compile_config=config)

        [vgf], [tosa] = folder.glob("*.vgf"), folder.glob("*.tosa")
        held_out = images[HELD_OUT.start : HELD_OUT.stop]
        with torch.no_grad():
            expected = model(held_out)
        operators = tosa_operators(tosa)
        result = {
            "name": f"ExecuTorch {version('executorch')}",
            "seconds": watch.seconds,
            "back_end": watch.seconds["lower"],
            "total": sum(watch.seconds.values()),
            "processor_seconds": watch.processor,
            "peak_memory_mb": watch.peaks["lower"],
            "peaks": watch.peaks,
            "file_bytes": vgf.stat().st_size,
            "operators": operators,
            "operator_count": sum(operators.values()),
            "score": score(expected, run_tosa(tosa, edge, held_out), labels[HELD_OUT.start : HELD_OUT.stop]),
            "scored_with": "TOSA reference model on the .tosa file behind the .vgf",
        }
    write_result(stdout, result)


if __name__ == "__main__":
    main()
