"""The demo end to end, short; its data; and what it says when an executor is missing or differs."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tosaic
from tosaic.demo import cifar, prove, run_demo
from tosaic.demo.data import HELD_OUT, TRAINING, Patches, downscale, held_out, photograph, training_data
from tosaic.demo.upscaler import Upscaler, psnr
from tosaic.errors import ExecuteError, InputError
from tosaic.execute import vulkan
from tosaic.report.facts import Report
from tosaic.report.json import from_json

MODELS = ("PTQ 8a8w", "QAT 8a8w", "PTQ 16a8w")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    run_demo(folder, quick=True, data="photographs")
    return folder


@pytest.fixture(scope="module")
def report(output: Path) -> Report:
    return from_json((output / "report.json").read_text())


def test_rows(report: Report) -> None:
    assert [row.model for row in report.rows] == ["bilinear", "bicubic", "FP32", *MODELS]
    assert all(set(row.scores) == set(HELD_OUT) for row in report.rows)
    # training starts at bilinear quality, and sixty steps do not ruin it; quantization costs little
    assert report.row("FP32").mean > report.row("bilinear").mean - 0.3
    for model in MODELS:
        assert report.row(model).mean > report.row("FP32").mean - 1


def test_the_executors_agree(report: Report) -> None:
    missing = vulkan.available()
    for _, artifact in report.artifacts:
        assert [check.executor for check in artifact.checks] == ["simulator", "reference", "vulkan"]
        *others, on_vulkan = artifact.checks
        assert all(check.agrees and check.values == 2 * 3 * 64 * 64 for check in others)
        assert on_vulkan.agrees is (None if missing else True)


@pytest.mark.parametrize("model", MODELS)
def test_files_and_passports(output: Path, report: Report, model: str) -> None:
    facts = report.row(model).artifact
    assert facts is not None
    artifact = tosaic.load(output / facts.file)
    assert facts.size == (output / facts.file).stat().st_size
    assert facts.operators == len(artifact.graph.ops)
    assert artifact.passport.recipe["scheme"] == model.split()[1]
    assert set(artifact.passport.metrics) == {f"psnr_db.{name}" for name in HELD_OUT}
    assert artifact.passport.verified["executors"]["reference"]["agrees"] is True
    # the scores in the table are of this very file
    truth = held_out(64)
    for name, image in truth.items():
        [found] = artifact.run([downscale(image)], float_io=True)
        assert psnr(torch.from_numpy(found), image) == pytest.approx(report.row(model).scores[name], abs=1e-6)


def test_pictures_and_reports(output: Path, report: Report) -> None:
    assert [picture.file for picture in report.pictures] == [f"{name}.png" for name in HELD_OUT]
    for picture in report.pictures:
        with Image.open(output / picture.file) as image:
            assert image.mode == "RGB" and image.width > 1000
    html, text = (output / "report.html").read_text(), (output / "report.md").read_text()
    for model in MODELS:
        assert model in html and model in text
    assert (output / "before_after.png").is_file()
    assert html.count("data:image/png;base64,") == len(HELD_OUT)


def test_held_out_photographs_are_not_trained_on() -> None:
    assert not set(HELD_OUT) & set(TRAINING)
    assert {name: tuple(image.shape) for name, image in held_out().items()} == dict.fromkeys(HELD_OUT, (1, 3, 256, 256))


def test_patches_repeat_with_their_seed() -> None:
    images = [photograph("coffee"), photograph("rocket")]
    (low, high), (again, _) = Patches(images, 3).pair(4, 48), Patches(images, 3).pair(4, 48)
    assert torch.equal(low, again) and low.shape == (4, 3, 24, 24) and high.shape == (4, 3, 48, 48)
    assert not torch.equal(low, Patches(images, 4).pair(4, 48)[0])


def test_small_images_become_mosaics() -> None:
    low, high = Patches(torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8), 0).pair(2, 80)
    assert high.shape == (2, 3, 80, 80) and low.shape == (2, 3, 40, 40)


def test_an_untrained_upscaler_passes_colours_through() -> None:
    grey = torch.full((1, 3, 8, 8), 0.5)
    with torch.no_grad():
        assert torch.allclose(Upscaler()(grey)[..., 4:-4, 4:-4], torch.tensor(0.5), atol=0.2)


def test_unknown_data() -> None:
    with pytest.raises(InputError, match="unknown data 'imagenet'"):
        training_data("imagenet", print)


def test_without_cifar10_the_photographs_are_used_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise InputError("CIFAR-10 is not here")

    monkeypatch.setattr(cifar, "cifar10", absent)
    said: list[str] = []
    assert training_data("auto", said.append).name == "photographs"
    assert "CIFAR-10 is not here" in said[0] and "photographs" in said[0]
    with pytest.raises(InputError, match="CIFAR-10 is not here"):
        training_data("cifar10", said.append)


def _archive(path: Path, batch: bytes) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for number in (1, 2):
            member = tarfile.TarInfo(f"cifar-10-batches-py/data_batch_{number}")
            member.size = len(batch)
            archive.addfile(member, io.BytesIO(batch))
    return path


def test_cifar10_is_read(tmp_path: Path) -> None:
    rows = np.arange(4 * 3072, dtype=np.uint32).astype(np.uint8).reshape(4, 3072)
    path = _archive(tmp_path / cifar.ARCHIVE, pickle.dumps({b"data": rows, b"labels": [0, 1, 2, 3]}))
    images = cifar.read(path)
    assert images.shape == (8, 3, 32, 32) and images.dtype == torch.uint8
    assert np.array_equal(images[:4].reshape(4, -1).numpy(), rows)


def test_an_archive_that_would_execute_is_refused(tmp_path: Path) -> None:
    path = _archive(tmp_path / cifar.ARCHIVE, pickle.dumps({b"data": print}))
    with pytest.raises(InputError, match="asks for builtins"):
        cifar.read(path)


def test_an_archive_with_another_checksum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / cifar.ARCHIVE).write_bytes(b"something else")
    monkeypatch.setenv("TOSAIC_CIFAR10", str(tmp_path))
    with pytest.raises(InputError, match="not the official archive"):
        cifar.cifar10()


class _Artifact:
    """Stands in for an artifact whose executors do not agree."""

    def __init__(self, real: tosaic.Artifact) -> None:
        self.passport, self.graph, self._real = real.passport, real.graph, real

    def run(self, inputs: list[np.ndarray], on: str, float_io: bool) -> list[np.ndarray]:
        [found] = self._real.run(inputs, on="simulator", float_io=float_io)
        return [found + (on == "reference")]


def test_a_missing_executor_is_named_and_a_difference_is_found(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = tosaic.load(output / "upscaler_ptq_8a8w.vgf")
    monkeypatch.setattr(vulkan, "available", lambda: "there is no Vulkan device")
    picture = downscale(held_out(64)["chelsea"]).numpy()
    _, (simulator, reference, on_vulkan) = prove.prove(_Artifact(artifact), {"chelsea": picture}, lambda done: None)  # type: ignore[arg-type]
    assert simulator.agrees is True
    assert reference.agrees is False and "chelsea: 12,288 of 12,288 values differ" in reference.detail
    assert on_vulkan.agrees is None and on_vulkan.detail == "there is no Vulkan device" and on_vulkan.values == 0


def test_a_difference_fails_the_run(tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from tosaic.demo import main

    first = report.row("PTQ 8a8w")
    assert first.artifact is not None
    checks = tuple(dataclasses.replace(c, agrees=False, detail="7 values differ") for c in first.artifact.checks[1:2])
    broken = dataclasses.replace(report, rows=(dataclasses.replace(first, artifact=dataclasses.replace(first.artifact, checks=checks)),))
    monkeypatch.setattr(main, "_tell", lambda *_: dataclasses.replace(broken, baseline="PTQ 8a8w"))
    with pytest.raises(ExecuteError, match="reference: 7 values differ"):
        run_demo(tmp_path, quick=True)
