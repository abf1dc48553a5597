"""The PT2E quantizer: from the rules, which value is quantized how.

A value that only multiply-accumulates read is at activation precision; one that arithmetic reads stays wide
(`between`), and each MAC behind it narrows its own input. Operators outside the scope keep their float inputs.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node
from torch.utils import _pytree as pytree
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer, SharedQuantizationSpec

from tosaic.errors import InputError
from tosaic.operators import per_token_linear
from tosaic.quantization.analysis import bounds, constants, depths, feature_maps, is_float, uneven_tables
from tosaic.quantization.observers import FakeQuantize, Observer
from tosaic.quantization.pairs import multiply_in_pairs
from tosaic.quantization.rules import RULES, Kind, Rule, aten
from tosaic.quantization.schemes import DIGITS, INT8, INT16, INT32, PRECISIONS, SCHEMES, WEIGHT8, Precision, Recipe, Scheme, matches
from tosaic.quantization.whole_numbers import cast_integers, is_integer

_KEY = "quantization_annotation"
_NARROW = (Kind.MAC, Kind.NARROW, Kind.POOL, Kind.INDEX)
_SHARES = (Kind.MOVE, Kind.POOL)  # the result has the scale of the input
_IN_DIGITS = "digits"  # what a layer of two digits wants to read
_NO_NUMBER = (Kind.INDEX, Kind.COMPARE)  # the result is no real number


@dataclass(frozen=True)
class Chosen:
    """What was decided for one operator: its rule and scheme (None: it stays float, for `reason`)."""

    rule: Rule | None
    scheme: Scheme | None
    reason: str


def module_path(node: Node) -> str:
    """Dotted path of the nn.Module that a node comes from ("" at the top)."""
    stack = node.meta.get("nn_module_stack") or {}
    return next((path for path, _ in reversed(list(stack.values()))), "").removeprefix("L['self'].")


def _module_class(node: Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    kinds = [kind if isinstance(kind, str) else kind.__qualname__ for _, kind in stack.values()]
    return kinds[-1].rsplit(".", 1)[-1] if kinds else ""


def is_linear_layer(node: Node) -> bool:
    """Whether a node is an nn.Linear's, not of one that a larger module spells out."""
    return node.target in (aten.linear.default, per_token_linear) and _module_class(node) in ("Linear", "NonDynamicallyQuantizableLinear")


def aten_name(node: Node) -> str:
    """`conv2d`-like short name of a node's operator."""
    return getattr(node.target, "_opname", None) or str(node.target).split(".")[0]


class TosaQuantizer(Quantizer):
    """Annotates a captured graph by `RULES` and a `Recipe`.

    Attributes:
        chosen: filled by `annotate`: node name -> decision, for the ledger.
    """

    def __init__(self, recipe: Recipe, *, output_names: Sequence[str] = (), training: bool = False) -> None:
        super().__init__()
        self.recipe, self.output_names, self.training = recipe, output_names, training
        self.chosen: dict[str, Chosen] = {}

    def transform_for_annotation(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        """Spell out what is calibrated in parts."""
        cast_integers(model)
        multiply_in_pairs(model)
        return model

    def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        """Annotate the operators of a captured graph.

        Raises:
            InputError: an override names nothing in it.
        """
        self._constant = constants(model)
        self._check_overrides(model)
        self._check_ports(model)
        self._feature_maps = feature_maps(model)
        self._depths, self._bounds = depths(model), bounds(model)
        self._uneven = uneven_tables(model)
        for node in model.graph.nodes:
            if node.op == "call_function" or self._is_simulated(node) or _is_dropout(node):
                self.chosen[node.name] = self._choose(model, node)
        nodes = list(model.graph.nodes)
        self._fused = {n for n in nodes if self._fuses_with_producer(n)}
        self._demand: dict[Node, set[str]] = {}
        for node in reversed(nodes):
            self._demand[node] = self._demand_of(node)
        self._precision = {n: self._precision_of(n) for n in nodes}
        # torchao wants what is shared to come before what shares it: a concatenation has the scale of its first operand
        self._first_of: dict[Node, Node] = {}
        for node in nodes:
            if (cat := self._only_concatenated(node)) is not None:
                self._first_of[node] = self._first_of.setdefault(cat, node)
        self._stored: dict[Node, Precision | None] = {}
        for node in nodes:
            if node.op == "placeholder":
                self._annotate_input(node)
            self._stored[node] = self._stored_of(node)
            if node.name in self.chosen and self.chosen[node.name].scheme is not None:
                self._annotate_operator(node)
        return model

    def _check_overrides(self, model: torch.fx.GraphModule) -> None:
        names = {(module_path(n), aten_name(n)) for n in model.graph.nodes if n.op == "call_function"}
        for pattern, scheme in self.recipe.overrides.items():
            if not any(matches(pattern, *name) for name in names):
                known = sorted({name for pair in names for name in pair if name})
                close = difflib.get_close_matches(pattern.rstrip(".*"), known, 1)
                remedy = (
                    f"did you mean '{close[0]}'?" if close else f"known are {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}"
                )
                if any(path.startswith(f"{pattern}.") for path, _ in names):
                    remedy = f"write '{pattern}.*' for what is inside it"
                raise InputError(f"override '{pattern}' names no module or operator of the model", remedy=remedy)
            if SCHEMES[scheme].linear is not None and not any(
                self._is_linear(n) and matches(pattern, module_path(n), aten_name(n)) for n in model.graph.nodes
            ):
                what = f"override '{pattern}' names no linear layer with constant weights, and {scheme} is for these"
                raise InputError(what, remedy="use 8a8w, or 16a8w, which needs the int16 extension")

    def _is_linear(self, node: Node) -> bool:
        """A linear layer with constant weights."""
        return node.target in (aten.linear.default, per_token_linear) and node.args[1] in self._constant

    def _check_ports(self, model: torch.fx.GraphModule) -> None:
        names = [*(n.name for n in model.graph.find_nodes(op="placeholder")), *self.output_names]
        unknown = [name for name in self.recipe.ports if name not in names]
        if unknown:
            raise InputError(f"the model has no input or output '{unknown[0]}'", remedy=f"it has {', '.join(names)}")
        activation = SCHEMES[self.recipe.scheme].activation
        known = (_name(activation) if activation else "", self.recipe.between)
        for name in self.output_names:
            if (precision := self.recipe.ports.get(name, known[1])) not in known:
                raise InputError(f"output '{name}' cannot be {precision}", remedy=f"{self.recipe.scheme} gives {' or '.join(known)}")

    def validate(self, model: torch.fx.GraphModule) -> None:
        """Nothing to check: `annotate` writes rules only."""

    def _choose(self, model: torch.fx.GraphModule, node: Node) -> Chosen:
        if node in self._constant:
            return Chosen(None, None, "constant")
        if node.op == "call_module":
            # a simulated batch norm stands for the convolution before it, a dropout for the value that it passes on
            inner = self._choose(model, node.args[0]) if isinstance(node.args[0], Node) and node.args[0].op != "placeholder" else None
            rule = Rule(Kind.MOVE, natural=True) if _is_dropout(node) else Rule(Kind.MAC, (), natural=True)
            return Chosen(
                rule, inner.scheme if inner else self.recipe.scheme_of(module_path(node), "", False), inner.reason if inner else "rule"
            )
        if node.target is operator.getitem:
            return self._choose(model, node.args[0])
        rule = RULES.get(node.target)
        value = node.meta.get("val")
        value = value[0] if isinstance(value, list | tuple) else value  # sorted values, and their places
        if rule is None:
            return Chosen(None, None, "no quantization rule")
        if isinstance(value, torch.Tensor) and not value.is_floating_point() and rule.kind not in _NO_NUMBER:
            if not any(map(is_float, node.all_input_nodes)):
                return Chosen(None, None, "integer arithmetic")
            rule = dataclasses.replace(rule, kind=Kind.COMPARE)  # a cast
        scheme = self.recipe.scheme_of(module_path(node), aten_name(node), is_linear_layer(node))
        if scheme.activation is None:
            return Chosen(rule, None, "override" if self.recipe.scope == "full" else f"outside scope {self.recipe.scope}")
        if rule.kind in _SHARES and node.args[0] in self._constant:  # a constant has no scale to share: a table that indices read
            rule = dataclasses.replace(rule, kind=Kind.JOIN, inputs=())
        if rule.kind is Kind.UNARY:
            rule = dataclasses.replace(rule, kind=Kind.NARROW if node in self._feature_maps else Kind.WIDE)
        return Chosen(rule, scheme, "rule")

    def _scheme(self, node: Node) -> Scheme | None:
        chosen = self.chosen.get(node.name)
        return chosen.scheme if chosen else None

    def _rule(self, node: Node) -> Rule | None:
        chosen = self.chosen.get(node.name)
        return chosen.rule if chosen else None

    def _between(self, scheme: Scheme) -> Precision:
        assert scheme.activation is not None
        wide = PRECISIONS[self.recipe.between]
        return wide if wide.dtype.bits > scheme.activation.dtype.bits else scheme.activation

    def _fuses_with_producer(self, node: Node) -> bool:
        rule = self._rule(node)
        if rule is None or rule.kind is not Kind.CLAMP or self._scheme(node) is None:
            return False
        producer = node.args[0]
        before = self._rule(producer) if isinstance(producer, Node) else None
        natural = before is not None and before.natural and before.kind not in (Kind.MOVE, Kind.NARROW)
        return natural and len(producer.users) == 1 and self._scheme(producer) == self._scheme(node)

    def _flows_on(self, node: Node) -> bool:
        """Whether a value needs no scale of its own: an accumulator that is divided."""
        rule, users = self._rule(node), list(node.users)
        if rule is None or len(users) != 1 or rule.kind is not Kind.MAC:
            return False
        (user,) = users
        divided = user.target is aten.div.Tensor and user.args[0] is node and user.args[1] is not node
        return divided and self._scheme(user) == self._scheme(node)

    def _demand_of(self, node: Node) -> set[str]:
        """What readers of a value want: "wide", "float", "digits", or the name of a precision. That of their own values is known."""
        wanted: set[str] = set()
        for user in node.users:
            rule = self._rule(user)
            if user.target is operator.getitem and not is_float(user):  # the indices beside sorted values
                continue
            if user.op == "output":
                wanted |= {"wide" for name in self._names_of(node, user) if self._is_wide_port(name)}
            elif rule is None or (scheme := self._scheme(user)) is None:
                wanted.add("float")
            elif user.target is operator.getitem or rule.kind is Kind.MOVE:
                wanted |= self._demand[user]
            elif scheme.linear is not None and self._is_linear(user):
                wanted.add(_IN_DIGITS)
            else:
                wanted.add(_name(scheme.activation) if rule.kind in _NARROW else "wide")
        return wanted

    def _names_of(self, node: Node, output: Node) -> list[str]:
        """The names under which a value leaves the model."""
        leaves = pytree.tree_leaves(output.args[0])
        return [name for name, leaf in zip(self.output_names or [""] * len(leaves), leaves, strict=True) if leaf is node]

    def _is_wide_port(self, name: str) -> bool:
        return self.recipe.ports.get(name) == self.recipe.between

    def _precision_of(self, node: Node) -> Precision | None:
        """Precision at which the value of a quantized operator is stored; None if it is not quantized there."""
        rule, scheme = self._rule(node), self._scheme(node)
        if rule is None or scheme is None or rule.kind in _NO_NUMBER or self._flows_on(node):
            return None
        if any(user in self._fused for user in node.users) or any(self._is_simulated(user) for user in node.users):
            return None
        demand = self._demand[node]
        if "float" in demand:
            return None
        if (cache := self._written_input(node)) is not None:
            return self._port(cache, scheme)
        computed = rule.kind in (Kind.MAC, Kind.WIDE, Kind.CLAMP, Kind.JOIN)
        if _IN_DIGITS in demand and computed and not rule.narrow_result:
            return INT32
        if "wide" in demand and computed and not rule.narrow_result:
            return self._between(scheme)
        # what a reader of more bits would lack, no requantization gives back
        wanted = [PRECISIONS[name] for name in demand & PRECISIONS.keys()] if computed else []
        return max((scheme.activation, *wanted), key=_bits)

    def _port(self, node: Node, scheme: Scheme) -> Precision | None:
        """Precision of an input of the model."""
        if node.name in self.recipe.ports:
            return PRECISIONS[self.recipe.ports[node.name]]
        return DIGITS if _IN_DIGITS in self._demand[node] else scheme.activation

    def _written_input(self, node: Node) -> Node | None:
        """The input of the model, a cache, into which an operator writes."""
        rule = self._rule(node)
        return node.args[0] if rule is not None and rule.writes and node.args[0].op == "placeholder" else None

    def _is_simulated(self, node: Node) -> bool:
        """A batch norm that training simulates folded (its weight scaling is part of the weight)."""
        return node.op == "call_module" and str(node.target).startswith("fold_") and not str(node.target).endswith("_weight")

    def _annotate_input(self, node: Node) -> None:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not node.users:
            return
        schemes = [s for u in node.users if (s := self._scheme(u)) is not None]
        if not schemes and self.recipe.scope == "full" and SCHEMES[self.recipe.scheme].activation is not None:
            schemes = [SCHEMES[self.recipe.scheme]]  # handed on as it is
        if "float" not in self._demand[node] and schemes:
            widest = max(schemes, key=lambda s: _bits(s.activation))
            node.meta[_KEY] = QuantizationAnnotation(output_qspec=self._activation(self._port(node, widest), node.name), _annotated=True)

    def _annotate_operator(self, node: Node) -> None:
        rule, scheme = self._rule(node), self._scheme(node)
        assert rule is not None and scheme is not None
        if node.target is operator.getitem and not is_float(node):
            return
        if node.target is operator.getitem:
            share = SharedQuantizationSpec(node.args[0].args[0]) if self._stored[node] else None
            node.meta[_KEY] = QuantizationAnnotation(output_qspec=share, _annotated=True)
            return
        annotation = QuantizationAnnotation(_annotated=True)
        for operand in self._operands(node, rule):
            if spec := self._input_spec(node, operand, rule, scheme):
                annotation.input_qspec_map[operand] = spec
        if rule.weight is not None:
            weight = node.args[rule.weight]
            if spec := self._weight_spec(node, weight, rule, scheme):
                annotation.input_qspec_map[weight] = spec
        elif rule.kind is Kind.MAC:
            for factor in self._constant_factors(node, rule):
                annotation.input_qspec_map[factor] = self._activation(
                    INT16 if scheme.activation is INT16 else WEIGHT8, factor.name, tight=True
                )
        annotation.output_qspec = self._output_spec(node, rule, annotation)
        node.meta[_KEY] = annotation

    def _operands(self, node: Node, rule: Rule) -> list[Node]:
        found: list[Node] = []
        for position in rule.inputs:
            argument = node.args[position] if position < len(node.args) else None
            found += argument if isinstance(argument, list | tuple) else [argument]
        return [n for n in dict.fromkeys(found) if isinstance(n, Node) and n not in self._constant and is_float(n)]

    def _stored_of(self, node: Node) -> Precision | None:
        """Precision of the value of any node, as other operators see it. Those of the nodes before it are known."""
        if node.op == "placeholder":
            annotation = node.meta.get(_KEY)
            return None if annotation is None else _of_spec(annotation.output_qspec)
        if node.target is operator.getitem:
            source = node.args[0].args[0]
            return self._stored[source] if isinstance(source, Node) else None
        rule = self._rule(node)
        shares = rule is not None and rule.kind in _SHARES
        if shares and self._scheme(node) is not None and "float" not in self._demand[node]:
            inherited = self._stored[node.args[0]]
            if rule.kind is Kind.MOVE and inherited is not None:  # type: ignore[union-attr]
                return inherited
        return self._precision[node]

    def _input_spec(self, node: Node, operand: Node, rule: Rule, scheme: Scheme) -> QuantizationSpec | None:
        if node in self._fused or self._flows_on(operand):
            return None
        stored = self._stored[operand]
        if rule.kind in _NARROW:
            wanted = scheme.linear if scheme.linear is not None and self._is_linear(node) else scheme.activation
            enough = stored == wanted or (wanted is DIGITS and stored == INT8)  # 8 bits have no second digit
            return None if enough else self._activation(wanted, operand.name)
        return None if stored is not None else self._activation(self._between(scheme), operand.name)

    def _output_spec(self, node: Node, rule: Rule, annotation: QuantizationAnnotation) -> object:
        precision = self._precision[node]
        if precision is None:
            return None
        if rule.kind in _SHARES:
            source = node.args[0]
            return SharedQuantizationSpec((source, node) if source in annotation.input_qspec_map else source)
        if (cache := self._written_input(node)) is not None and self._stored[cache] == precision:
            return SharedQuantizationSpec(cache)
        first = self._first_of.get(node, node)
        whole = node.target is aten._to_copy.default and is_integer(node.args[0])
        return self._activation(precision, node.name, rule.fixed_range, whole) if first is node else SharedQuantizationSpec(first)

    def _only_concatenated(self, node: Node) -> Node | None:
        """The concatenation that is a value's only reader, if both can have one scale: then it costs no requantization."""
        rule, users = self._rule(node), list(node.users)
        if rule is None or rule.kind not in (Kind.MAC, Kind.WIDE, Kind.CLAMP) or len(users) != 1:
            return None
        reader = self._rule(users[0])
        if reader is None or reader.kind is not Kind.JOIN:
            return None
        precision = self._precision[node]
        narrow = precision is not None and precision is not INT32
        return users[0] if narrow and self._precision[users[0]] == precision else None

    def _activation(
        self, precision: Precision | None, label: str, fixed: tuple[float, float] | None = None, whole: bool = False, tight: bool = False
    ) -> QuantizationSpec:
        assert precision is not None
        tight |= self.recipe.observer == "tight-minmax"
        percentile = self.recipe.observer == "percentile" and precision is not INT32
        options = {
            "top": precision.quant_max if tight and precision is not INT32 else precision.top,
            "bound": math.inf if precision is INT32 else self._bounds.get(label, math.inf),
            "momentum": 0.01 if self.training and precision is not INT32 else 0.0,
            "percentile": percentile and not self.training,
            "fixed": fixed if precision is not INT32 else None,
            "depth": self._depths.get(label),
            "whole": whole and precision is INT32,
            "label": label,
        }
        return QuantizationSpec(
            dtype=precision.torch_dtype,
            quant_min=precision.quant_min,
            quant_max=precision.quant_max,
            qscheme=torch.per_tensor_symmetric if precision.symmetric else torch.per_tensor_affine,
            observer_or_fake_quant_ctr=_constructor(self.training, **options),
        )

    def _is_computed(self, weight: Node) -> bool:
        """A weight that the model computes (the simulated folding of a batch norm does not count)."""
        return weight not in self._constant and weight.op != "call_module"

    def _weight_spec(self, node: Node, weight: Node, rule: Rule, scheme: Scheme) -> QuantizationSpec | None:
        if not rule.inputs and (scheme.activation is INT16 or node in self._uneven):  # a table of embeddings is an activation itself
            return self._activation(INT16, weight.name, tight=True)  # calibration sees all of it
        return self._computed_weight(node, weight, scheme) if self._is_computed(weight) else self._weight(node, rule, scheme)

    def _computed_weight(self, node: Node, weight: Node, scheme: Scheme) -> QuantizationSpec | None:
        """Of a linear, which is a matrix product then: like its input. Convolutions of any input take int8."""
        precision = scheme.activation if node.target is aten.linear.default else INT8
        return None if self._stored[weight] == precision else self._activation(precision, weight.name)

    def _constant_factors(self, node: Node, rule: Rule) -> list[Node]:
        """Constants among the factors of a matrix product, which has no weights per channel."""
        factors = [node.args[position] for position in rule.inputs]
        return [n for n in dict.fromkeys(factors) if isinstance(n, Node) and n in self._constant and is_float(n)]

    def _weight(self, node: Node, rule: Rule, scheme: Scheme) -> QuantizationSpec:
        weight = scheme.weight
        assert weight is not None and rule.weight is not None
        transposed = node.target is aten.convolution.default and node.args[6]
        return QuantizationSpec(
            dtype=weight.torch_dtype,
            quant_min=weight.quant_min,
            quant_max=weight.quant_max,
            qscheme=torch.per_channel_symmetric,
            # the axis goes through the constructor: torchao hands it on only to classes with PerChannel in their name
            observer_or_fake_quant_ctr=_constructor(
                self.training,
                top=weight.top,
                memoryless=self.training,
                once=not self.training,
                ch_axis=1 if transposed else 0,
                label=str(node.args[rule.weight]),
            ),
        )


def _of_spec(spec: QuantizationSpec) -> Precision:
    return next(p for p in (*PRECISIONS.values(), DIGITS) if (p.torch_dtype, p.quant_max) == (spec.dtype, spec.quant_max))


def _name(precision: Precision | None) -> str:
    assert precision is not None
    return precision.dtype.name.lower()


def _bits(precision: Precision | None) -> int:
    assert precision is not None
    return precision.dtype.bits


def _is_dropout(node: Node) -> bool:
    return node.op == "call_module" and str(node.target).startswith("dropout_")


def _constructor(training: bool, **options: object) -> object:
    """An observer (or fake-quantize) constructor in the form that PT2E wants; equal options give equal constructors."""
    return _cached(training, tuple(sorted(options.items(), key=lambda item: item[0])))


@functools.cache
def _cached(training: bool, options: tuple[tuple[str, object], ...]) -> object:
    return (FakeQuantize if training else Observer).with_args(**dict(options))
