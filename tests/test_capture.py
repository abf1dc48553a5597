"""Capture: what the user's own code does to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tosaic
from tosaic.errors import CaptureError, InputError, UnsupportedError


class Flat(nn.Module):
    """The batch size is in the arguments of a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.head = nn.Conv2d(1, 2, 3), nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv(x))
        return self.head(self.drop(x.view(x.size(0), -1)).flatten(1))


def test_a_model_that_was_captured_with_one_sample_trains_on_batches() -> None:
    torch.manual_seed(0)
    example = torch.rand(1, 1, 4, 4)
    session = tosaic.prepare_qat(Flat(), example)
    assert session.model(torch.rand(5, 1, 4, 4)).shape == (5, 3)
    artifact = tosaic.compile(session.finish())
    assert artifact.passport.inputs[0].shape == [1, 1, 4, 4]
    [found] = artifact.run(example, float_io=True)
    assert found.shape == (1, 3)


def test_an_error_names_the_users_line_wherever_it_lies(tmp_path: Path) -> None:
    """Also in folders whose names are those of packages."""
    place = tmp_path / "torch" / "tosaic" / "net.py"
    place.parent.mkdir(parents=True)
    place.write_text("import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n        return x @ x\n")
    names: dict[str, type[nn.Module]] = {}
    exec(compile(place.read_text(), str(place), "exec"), names)
    with pytest.raises(CaptureError) as error:
        tosaic.compile(names["Net"](), torch.zeros(2, 3))
    assert error.value.where == f"{place}:4"


def test_a_failed_capture_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(CaptureError, match="cannot capture Branching"):
        tosaic.compile(Branching(), torch.zeros(2))
    assert capfd.readouterr() == ("", "")


def test_in_place_operators_on_inputs_write_to_a_copy() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3)).eval()
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        exact = model(x.clone()).numpy()
    artifact = tosaic.compile(model, (x.clone(),))
    assert len(artifact.passport.outputs) == 1
    np.testing.assert_allclose(artifact.run(x)[0], exact, atol=1e-5)


def test_other_floats_are_refused() -> None:
    with pytest.raises(InputError, match=r"an input has type torch\.float64, which TOSA lacks"):
        tosaic.compile(nn.Conv2d(1, 2, 3).double(), torch.rand(1, 1, 4, 4, dtype=torch.float64))


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"the model is function, expected a torch\.nn\.Module"):
        tosaic.compile(lambda x: x, torch.rand(1))


def test_an_output_that_is_none_is_refused() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
            return x * 2, None

    with pytest.raises(UnsupportedError, match="output 'output_1' is not a tensor but NoneType"):
        tosaic.compile(Pair(), torch.rand(1, 4))
