"""ExecuTorch's Arm VGF backend on one of the whole models of `tests/zoo_models.py`: the peer's half of `models.py`.

    python benchmarks/peer_models.py MODEL 8a8w|16a8w --output FOLDER

Runs in the peer's environment and prints one JSON line. Where the backend does not take the whole model, what it leaves over runs
in PyTorch between the delegates, as ExecuTorch's CPU kernels would; each delegate's TOSA file runs on Arm's TOSA reference model.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peer_executorch import import_zoo, tosa_operators
from shared import SPECS, Stopwatch, claim_stdout, sqnr_db, write_result


def compile_spec_of(specification: str, folder: Path) -> Any:
    """What the backend is asked for, an emptied `folder` for its .vgf and .tosa files included."""
    from executorch.backends.arm.vgf import VgfCompileSpec

    for name in ("executorch.backends.arm.quantizer", "executorch.exir", "torchao.quantization.pt2e.quantize_pt2e"):
        importlib.import_module(name)  # now, and not in a stage that is timed
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"  # the backend looks for model-converter there
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*_tag*"):
        stale.unlink()
    compile_spec = VgfCompileSpec(specification)
    compile_spec.dump_intermediate_artifacts_to(str(folder))
    return compile_spec


def quantized(
    module: Any, scheme: str, compile_spec: Any, calibrate: Callable[[Any], None], scope: str = "full", observer: str = "histogram"
) -> Any:
    """A captured module in fake quantization, by the backend's quantizer.

    Args:
        scope: "full", or "linear": only nn.Linear, as ExecuTorch's export of language models has it.
        observer: of activations: "histogram", which is the backend's own choice and leaves out what is rare, or "min-max".
    """
    import torch
    from executorch.backends.arm import quantizer as arm
    from torchao.quantization.pt2e import MinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    configuration = {"8a8w": arm.get_symmetric_quantization_config, "16a8w": arm.get_symmetric_a16w8_quantization_config}[scheme]()
    if observer == "min-max":
        own = configuration.input_activation
        activation = replace(own, observer_or_fake_quant_ctr=MinMaxObserver.with_args(**own.observer_or_fake_quant_ctr.p.keywords))
        configuration = replace(configuration, input_activation=activation, output_activation=activation)
    quantizer = arm.VgfQuantizer(compile_spec)
    if scope == "linear":
        quantizer.set_module_type(torch.nn.Linear, configuration)
    else:
        quantizer.set_global(configuration)
    prepared = prepare_pt2e(module, quantizer)
    with torch.no_grad():
        calibrate(prepared)
    return convert_pt2e(prepared)


def lowered(converted: Any, example: tuple[Any, ...], compile_spec: Any) -> Any:
    """The program that the backend makes of it; each delegate is a .vgf file."""
    import torch
    from executorch.backends.arm.vgf import VgfPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    program = torch.export.export(converted, example)
    config = EdgeCompileConfig(_check_ir_validity=False)
    return to_edge_transform_and_lower(program, partitioner=[VgfPartitioner(compile_spec)], compile_config=config)


def made(edge: Any, folder: Path) -> dict[str, Any]:
    """What came out: delegates, their operators, and what is left to the CPU."""
    files, operators = sorted(folder.glob("*.tosa")), Counter[str]()
    for file in files:
        operators.update(tosa_operators(file))
    return {
        "left_over": left_over(edge),
        "delegates": len(files),
        "operators": dict(operators.most_common()),
        "operator_count": operators.total(),
        "rescales": operators["RESCALE"],
    }


def message(stage: str, failure: BaseException) -> str:
    """What failed: ExecuTorch's passes wrap the error in a list of all passes before."""
    while failure.__cause__ is not None:
        failure = failure.__cause__
    return f"{stage}: {type(failure).__name__}: {str(failure).strip()[:300]}"


def interpreter(edge: Any, folder: Path) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Runs the program that the backend hands back, its delegates on the TOSA reference model."""
    import numpy as np
    import torch
    import tosa_reference_model
    from torch.fx import Interpreter

    program = edge.exported_program()
    module = program.graph_module
    delegates = {node.args[0].target: node for node in module.graph.nodes if "executorch_call_delegate" in str(node.target)}
    tags = {file.read_bytes(): file.name.removesuffix(".tosa.vgf") for file in folder.glob("*.tosa.vgf")}
    tosa = {name: next(folder.glob(f"{tags[getattr(module, name).processed_bytes]}_*.tosa")).read_bytes() for name in delegates}

    class Run(Interpreter):
        def call_function(self, target: Any, arguments: tuple, keywords: dict) -> Any:
            if "executorch_call_delegate" not in str(target):
                return super().call_function(target, arguments, keywords)
            name, *values = arguments
            outputs, status = tosa_reference_model.run(tosa[name], [_raw(v) for v in values])
            if status != tosa_reference_model.GraphStatus.TOSA_VALID:
                raise RuntimeError(f"the TOSA reference model says {status.name} of {name}")
            wanted = [v for v in delegates[name].meta["val"]]
            return [_typed(raw, want) for raw, want in zip(outputs, wanted, strict=True)]

        def get_attr(self, target: str, arguments: tuple, keywords: dict) -> Any:
            return target if target in delegates else super().get_attr(target, arguments, keywords)

    def _raw(value: torch.Tensor) -> np.ndarray:
        return value.detach().contiguous().numpy()

    def _typed(raw: Any, want: torch.Tensor) -> torch.Tensor:
        dtype = torch.empty(0, dtype=want.dtype).numpy().dtype
        return torch.from_numpy(np.frombuffer(np.asarray(raw).tobytes(), dtype).copy()).reshape(want.shape)

    state = {**program.state_dict, **program.constants}
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}

    def run(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        given = iter(inputs)
        placeholders = [node.name for node in module.graph.nodes if node.op == "placeholder"]
        values = [state[names[name]] if name in names else next(given) for name in placeholders]
        return Run(module).run(*values)

    return run


def left_over(edge: Any) -> dict[str, int]:
    """Operators outside the delegates, without the quantize and dequantize of inputs and outputs."""
    nodes = [n for n in edge.exported_program().graph_module.graph.nodes if n.op == "call_function"]
    names = [str(getattr(n.target, "__name__", n.target)) for n in nodes]
    skip = ("executorch_call_delegate", "getitem", "quantized_decomposed")
    return dict(Counter(n for n in names if not any(s in n for s in skip)).most_common())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("scheme", choices=SPECS)
    parser.add_argument("--output", type=Path, required=True, help="where to leave the .vgf and .tosa files")
    arguments = parser.parse_args()
    stdout = claim_stdout()
    folder = arguments.output

    import torch

    import_zoo()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from zoo_models import CALIBRATION, CASES

    case = CASES[arguments.model]
    model, samples = case.build(), case.samples()
    with torch.no_grad():
        expected = torch.stack([model(*sample) for sample in samples[CALIBRATION:]])
    result: dict[str, Any] = {"name": f"ExecuTorch {version('executorch')}", "float_rms": float(expected.double().square().mean().sqrt())}
    compile_spec = compile_spec_of(SPECS[arguments.scheme], folder)
    watch = Stopwatch()
    stage = "capture"
    try:
        with watch.stage("capture"):
            module = torch.export.export(model, samples[0]).module(check_guards=False)
        stage = "quantize"
        with watch.stage("quantize"):
            converted = quantized(
                module, arguments.scheme, compile_spec, lambda prepared: [prepared(*sample) for sample in samples[:CALIBRATION]]
            )
        with torch.no_grad():
            result["fake_sqnr_db"] = sqnr_db(expected, torch.stack([converted(*sample) for sample in samples[CALIBRATION:]]))
        stage = "lower"
        with watch.stage("lower"):
            edge = lowered(converted, samples[0], compile_spec)
        result |= {"back_end": watch.seconds["lower"], "back_end_processor": watch.processors["lower"], **made(edge, folder)}
        stage = "run"
        run = interpreter(edge, folder)
        with torch.no_grad():
            result["sqnr_db"] = sqnr_db(expected, torch.stack([run(sample)[0] for sample in samples[CALIBRATION:]]))
    except Exception as failure:
        result["failed"] = message(stage, failure)
    result["seconds"] = watch.seconds
    write_result(stdout, result)


if __name__ == "__main__":
    main()
