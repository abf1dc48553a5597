"""Quantization-aware training in the user's own loop."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase

from tosaic.errors import QuantizeError
from tosaic.quantization.biases import round_biases
from tosaic.quantization.pt2e import convert, prepare
from tosaic.quantization.ptq import Inputs, Quantized, calibrate
from tosaic.quantization.quantizer import TosaQuantizer
from tosaic.quantization.schemes import Recipe
from tosaic.quantization.streams import share_scales


class QatSession:
    """A model under quantization-aware training.

    Attributes:
        model: trains like any nn.Module, with train() and eval(); in train mode scales follow the data, and batch
            norm is simulated folded with batch statistics; in eval mode it computes what the artifact will.
    """

    def __init__(
        self,
        module: torch.fx.GraphModule,
        example_inputs: Inputs,
        input_names: list[str],
        output_names: list[str],
        recipe: Recipe,
        finish_training: Callable[[torch.fx.GraphModule], None],
    ) -> None:
        self._quantizer = TosaQuantizer(recipe, output_names=output_names, training=True)
        self._example_inputs, self._names, self._recipe = example_inputs, (input_names, output_names), recipe
        self._finish_training = finish_training
        self._calibration: dict[str, Any] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model = prepare(module, self._quantizer, training=True)
        # torchao forbids train() and eval() on exported models, whose batch norm and dropout are baked in; ours are modules
        self.model.train = types.MethodType(nn.Module.train, self.model)  # type: ignore[method-assign]
        self.model.eval = types.MethodType(nn.Module.eval, self.model)  # type: ignore[method-assign]
        self.model.train()

    def calibrate(self, data: Iterable[Any], progress: Callable[[int], None] | None = None) -> None:
        """Set the first scales from calibration data, so that training starts from PTQ rather than from one batch."""
        self.model.train()
        folds = [m for m in self.model.modules() if hasattr(m, "frozen")]
        frozen = [m.frozen for m in folds]
        momenta = [(m.observer, m.observer.momentum) for m in self._fake_quantizers()]
        dropouts = [m for name, m in self.model.named_modules() if name.startswith("dropout_")]
        try:
            for fold in folds:
                fold.frozen = True  # type: ignore[assignment]
            for dropout in dropouts:
                dropout.eval()
            for observer, _ in momenta:
                observer.momentum = 0.0
            self._calibration = calibrate(self._run, self._example_inputs, data, progress)
        finally:
            for fold, value in zip(folds, frozen, strict=True):
                fold.frozen = value  # type: ignore[assignment]
            for dropout in dropouts:
                dropout.train()
            for observer, momentum in momenta:
                observer.momentum = momentum

    def _run(self, inputs: Inputs) -> None:
        """Run the model on flattened inputs."""
        self.model(*pytree.tree_unflatten(list(inputs), pytree.tree_structure(self._example_inputs)))

    def _fake_quantizers(self) -> list[Any]:
        return [m for m in self.model.modules() if isinstance(m, FakeQuantizeBase)]

    def freeze_observers(self) -> None:
        """Keep activation scales as they are; weights' scales still follow the weights."""
        for fake in self._fake_quantizers():
            fake.disable_observer()

    def freeze_batch_norm(self) -> None:
        """Use the running statistics from now on, as the artifact does."""
        for module in self.model.modules():
            if hasattr(module, "frozen"):
                module.frozen = True  # type: ignore[assignment]

    def finish(self) -> Quantized:
        """What was trained, as `tosaic.compile` takes it, with exactly the scales of the last training step.

        Raises:
            QuantizeError: a value never got a scale (the model was never run in train mode), or weights are not finite.
        """
        self.model.eval()
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise QuantizeError(f"weight '{name}' is not finite after training", remedy="lower the learning rate")
        self._finish_training(self.model)
        magnitudes = share_scales(self.model)
        converted = convert(self.model)
        round_biases(converted)
        input_names, output_names = self._names
        return Quantized(
            converted, self._example_inputs, input_names, output_names, self._recipe, self._quantizer.chosen, self._calibration, magnitudes
        )
