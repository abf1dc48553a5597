"""How the parts of a decoder are quantized: by the mode, by what calibration measured, and by what the user said, which wins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from llm import export_folders as folders
from llm import tiny

from tosaic.llm.chain import parts, prepared
from tosaic.llm.checkpoint import open_checkpoint
from tosaic.llm.parts import Choice
from tosaic.llm.smoothing import INPUTS

DOWN, ROTATION = "layer.mlp.down_proj", "layer.mlp.rotation.*"
ALL = [f"layer.{name}" for names in INPUTS.values() for name in names]


def choices(outlier: bool, mode: str, **options: object) -> list[Choice]:
    """Of the parts in order; an `outlier` is a token of which the feed-forward block of layer 0 makes far more than of any other."""
    checkpoint = open_checkpoint(folders.checkpoint("llama"))
    settings = folders.settings(mode, **{"smoothing": False, "rotation": False, **options})
    found = []
    for number, _, make in parts(checkpoint, settings):
        part, layer = make()
        stream = np.random.default_rng(number).standard_normal((2, folders.LENGTH, tiny.HIDDEN)).astype(np.float32)
        if number == 0:
            stream = np.arange(2 * folders.LENGTH).reshape(2, -1)
        elif number == 1 and outlier:
            assert layer is not None
            torch.nn.Module.register_forward_pre_hook(layer.mlp.down_proj, lambda _, x: (x[0] * torch.tensor([1e3] + [1.0] * 7)[:, None],))
        found.append(prepared(part, layer, settings, checkpoint, stream))
    return found


def test_an_input_with_an_outlier_takes_two_digits() -> None:
    start, first, second, end = choices(True, "vgf_8a8w", activation_scales="static")
    assert (first.scheme, first.overrides) == ("8a8w", {DOWN: "16a8w-digits"})
    assert not second.overrides and start.overrides == {"embed_tokens": "8a8w"} and end.overrides == {"lm_head": "16a8w-digits"}


@pytest.mark.parametrize(
    ("mode", "options", "layer", "head"),
    [
        ("vgf_8a8w", {}, {}, {"lm_head": "16a8w-per-token"}),
        ("vgf_8a8w", {"activation_scales": "static", "overrides": {"*": "8a8w"}}, "8a8w", {"lm_head": "8a8w"}),
        ("vgf_8a8w", {"overrides": {"lm_head": "8a8w-per-token"}}, {}, {"lm_head": "8a8w-per-token"}),
        ("vgf_16a8w", {"spec": folders.INT16}, {}, {}),
        ("vgf_8a8w", {"rotation": True}, {ROTATION: "16a8w-per-token"}, {"lm_head": "16a8w-per-token"}),
        ("vgf_16a8w", {"rotation": True, "spec": folders.INT16}, {ROTATION: "16a8w-per-token"}, {}),
        (
            "vgf_8a8w",
            {"rotation": True, "activation_scales": "static", "overrides": {"layers.*": "8a8w-per-token"}},
            {ROTATION: "16a8w-digits", **dict.fromkeys(ALL, "8a8w-per-token")},
            {"lm_head": "16a8w-digits"},
        ),
    ],
)
def test_what_has_no_need_or_is_said_otherwise(mode: str, options: dict, layer: dict | str, head: dict) -> None:
    _, first, _, end = choices(True, mode, **options)
    assert end.overrides == head
    assert set(first.overrides.values()) == {layer} if isinstance(layer, str) else first.overrides == layer
