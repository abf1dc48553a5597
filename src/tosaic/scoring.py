"""How near an artifact comes to the model that it was made from: the file itself is run, and not only its fake quantization."""

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


def score(
    artifact: Artifact,
    model: Callable[..., Any],
    example_inputs: Any,
    samples: Iterable[Any],
    limit: int = 8,
    *,
    instead: Callable[..., Any] | None = None,
) -> dict[str, float]:
    """Run both on the same inputs, the artifact on the simulator with real values in and out.

    Args:
        model: what to compare with; called as the user would, without gradients.
        example_inputs: those that the artifact was compiled for.
        samples: as for calibration: input tuples, or larger batches.
        limit: use so many samples at most.
        instead: scored instead of the artifact, whose outputs it has: its fake quantization.

    Returns:
        By output name: the SQNR in dB over all samples together (inf: exactly equal) of a float output, the share of
        equal values (at most 1) of an integer one. Empty without samples.
    """
    leaves, structure = pytree.tree_flatten(example_inputs if isinstance(example_inputs, tuple) else (example_inputs,))
    expected, found = [], []
    for sample in islice(batches(samples, tuple(leaves)), limit):
        tensors = iter(sample)
        inputs = pytree.tree_unflatten([next(tensors) if isinstance(x, torch.Tensor) else x for x in leaves], structure)
        expected.append(_results(model, inputs))
        found.append(artifact.run(list(sample), float_io=True) if instead is None else _results(instead, inputs))
    scores = {}
    for i, port in enumerate(artifact.passport.outputs if found else ()):
        a, b = (np.stack([run[i] for run in runs]) for runs in (expected, found))
        scores[port.name] = sqnr(a, b) if a.dtype.kind == "f" else float((a == b).mean())
    return scores


def _results(model: Callable[..., Any], inputs: Iterable[Any]) -> list[np.ndarray]:
    with torch.no_grad():
        result = [t.detach() for t in pytree.tree_leaves(model(*inputs)) if isinstance(t, torch.Tensor)]
    # an artifact of float16 or bfloat16 gives its results as float32 too
    return [(t.float() if t.is_floating_point() else t).numpy() for t in result]


def metrics(scores: dict[str, float], artifact: Artifact, of: str = "") -> dict[str, float]:
    """`scores` as a passport stores them: `sqnr_db` or `equal` after `of`, with the output's name where there are several."""
    kinds = {port.name: "equal" if port.scale is None and port.dtype[0] == "i" else "sqnr_db" for port in artifact.passport.outputs}
    many = len(scores) > 1
    return {f"{of}{kinds[k]}.{k}" if many else of + kinds[k]: round(v, 4) for k, v in scores.items() if math.isfinite(v)}
