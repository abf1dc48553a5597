"""How near an artifact comes to the model that it was made from: the file itself is run, not its fake quantization."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from tosaic.artifact import Artifact
from tosaic.execute.compare import sqnr
from tosaic.quantization.ptq import batches


def score(artifact: Artifact, model: Callable[..., Any], example_inputs: Any, samples: Iterable[Any], limit: int = 8) -> dict[str, float]:
    """Run both on the same inputs, the artifact on the simulator with real values in and out.

    Args:
        model: what to compare with; called as the user would, without gradients.
        example_inputs: those that the artifact was compiled for.
        samples: as for calibration: input tuples, or larger batches.
        limit: use so many samples at most.

    Returns:
        By output name: the SQNR in dB over all samples together (inf: exactly equal) of a float output, the share of
        equal values (at most 1) of an integer one. Empty without samples.
    """
    leaves, structure = pytree.tree_flatten(example_inputs if isinstance(example_inputs, tuple) else (example_inputs,))
    expected, found = [], []
    for sample in islice(batches(samples, tuple(leaves)), limit):
        tensors = iter(sample)
        inputs = pytree.tree_unflatten([next(tensors) if isinstance(x, torch.Tensor) else x for x in leaves], structure)
        with torch.no_grad():
            result = pytree.tree_leaves(model(*inputs))
        # an artifact of float16 or bfloat16 gives its results as float32 too
        results = [t.detach() for t in result if isinstance(t, torch.Tensor)]
        expected.append([(t.float() if t.is_floating_point() else t).numpy() for t in results])
        found.append(artifact.run(list(sample), float_io=True))
    scores = {}
    for i, port in enumerate(artifact.passport.outputs if found else ()):
        a, b = (np.stack([run[i] for run in runs]) for runs in (expected, found))
        scores[port.name] = sqnr(a, b) if a.dtype.kind == "f" else float((a == b).mean())
    return scores


def metrics(scores: dict[str, float], artifact: Artifact) -> dict[str, float]:
    """`scores` as a passport stores them: `sqnr_db` or `equal`, with the output's name where there are several."""
    kinds = {port.name: "equal" if port.scale is None and port.dtype[0] == "i" else "sqnr_db" for port in artifact.passport.outputs}
    many = len(scores) > 1
    return {f"{kinds[k]}.{k}" if many else kinds[k]: round(v, 4) for k, v in scores.items() if math.isfinite(v)}
