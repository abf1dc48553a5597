"""The public names; a change here is a change for every user."""

from __future__ import annotations

import pytest

import tosaic


def test_exported_names() -> None:
    assert tosaic.__all__ == ["Artifact", "QatSession", "Quantized", "TosaicError", "compile", "load", "prepare_qat", "quantize"]


@pytest.mark.parametrize("name", tosaic.__all__)
def test_every_name_is_there_and_documented(name: str) -> None:
    assert getattr(tosaic, name).__doc__


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="module 'tosaic' has no attribute 'quantise'"):
        _ = tosaic.quantise
