"""`tosaic inspect` and `tosaic doctor`: what is in a file, and what is installed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from tosaic.artifact import Artifact, load
from tosaic.cli import explorer
from tosaic.cli.config import InspectOptions
from tosaic.cli.console import plural, size, stdout, table
from tosaic.cli.export import port_line
from tosaic.emit.files import atomic_write
from tosaic.emit.passport import passport_path
from tosaic.emit.vgf import to_vgf
from tosaic.engine import FORMAT_NAMES, header, scenario, vulkan_ports
from tosaic.errors import InputError
from tosaic.execute.doctor import checks
from tosaic.report.counts import Counts, count
from tosaic.report.picture import to_dot, to_svg
from tosaic.tosa import container
from tosaic.tosa.graph import Builder
from tosaic.tosa.ops import Abs
from tosaic.tosa.types import DType


def inspect(options: InspectOptions) -> None:
    """Print a summary of a file, its graph, its ledger, or everything as JSON; or write it in the forms of others."""
    path = options.file
    if options.open_:
        explorer.check(path)
    try:
        artifact = load(path)
    except InputError:  # with images, which are no tensors
        if not _shaders(path):
            raise
        return
    if artifact.shaders and (options.dot or options.svg or options.text or options.json_ or options.ledger):
        raise InputError(f"{path}: segment '{artifact.shaders[0]}' is a compute shader, so there is no graph to show")
    if _write(artifact, options):
        return
    if artifact.shaders:
        _shaders(path)
        return
    if options.text:
        stdout().print(str(artifact.graph), end="")
        return
    counted = count(artifact.graph)
    if options.json_:
        _json(artifact, counted)
        return
    if not options.ledger:
        _summary(artifact, counted)
        return
    if not artifact.passport.ledger:
        stdout().print(f"{path} has no ledger: it is in the passport, {passport_path(path)}, which is missing or has none")
    table([(row.precision, row.name, row.aten, row.reason, row.location.partition(" | ")[2]) for row in artifact.passport.ledger], indent=0)


def _write(artifact: Artifact, options: InspectOptions) -> bool:
    """Whether anything was to be written or shown elsewhere."""
    written: list[tuple[Path, str]] = []
    for path, what, data in (
        (options.dot, "for Graphviz: dot -Tsvg", lambda p: to_dot(artifact.graph).encode()),
        (options.svg, "for a browser", lambda p: to_svg(artifact.graph)),
        (options.scenario, "for scenario_runner --scenario, with the inputs beside it", lambda p: scenario(artifact, p).encode()),
        (options.header, "to include", lambda p: header(artifact).encode()),
    ):
        if path is not None:
            atomic_write(path, data(path))
            written.append((path, what))
    for path, what in written:
        stdout().print(f"wrote {path}, {what}")
    if options.scenario is not None:
        ports = vulkan_ports(artifact)
        lines = [(p.kind, f"{p.record.name}.npy", f"{p.value.dtype.numpy}{list(p.value.shape)}") for p in ports]
        table([*lines, ("", "", "stored values; outputs go where --output says")])
    if options.open_:
        explorer.show(options.file)
    return bool(written) or options.open_


def _json(artifact: Artifact, counted: Counts) -> None:
    passport = artifact.passport.model_dump()
    known = {**dataclasses.asdict(counted), "spec": str(counted.spec)}
    facts: dict[str, Any] = {"file": str(artifact.path), "passport": passport, "graph": known}
    if artifact.path is not None and artifact.path.suffix == ".vgf":
        facts["vulkan"] = [
            {"kind": p.kind, "name": p.record.name, "set": p.set, "binding": p.binding, "format": p.format_name}
            for p in vulkan_ports(artifact)
        ]
    stdout().print(json.dumps(facts, indent=1))


def _summary(artifact: Artifact, counted: Counts) -> None:
    passport, path = artifact.passport, artifact.path
    assert path is not None
    console = stdout()
    console.print(f"{path}  {size(path.stat().st_size)}, {plural(sum(counted.operators.values()), 'operator')}")
    needs = f"its operators need {counted.spec}"
    rows = [("spec", f"{passport.spec}; {needs}" if passport.spec and passport.spec != str(counted.spec) else passport.spec or needs)]
    if path.suffix == ".vgf":
        places = [f"  {p.format_name}, set {p.set} binding {p.binding}" for p in vulkan_ports(artifact)]
    else:
        places = [""] * (len(passport.inputs) + len(passport.outputs))
    ports = [(kind, port) for kind, group in (("input", passport.inputs), ("output", passport.outputs)) for port in group]
    rows += [(kind, port_line(port) + place) for (kind, port), place in zip(ports, places, strict=True)]
    rows += [("operators", ", ".join(f"{name} {count}" for name, count in counted.operators.items()))]
    rows += [("arithmetic", f"{counted.macs:,} multiply-accumulates")]
    rows += [("weights", f"{size(counted.weight_bytes)} of constants")]
    rows += _memory(counted)
    recipe = passport.recipe
    if recipe:
        overrides = "".join(f", {pattern} in {scheme}" for pattern, scheme in recipe.get("overrides", {}).items())
        parts = [f"{key} {recipe[key]}" for key in ("scope", "between", "observer") if key in recipe]
        rows += [("recipe", f"{', '.join([str(recipe.get('scheme')), *parts])}{overrides}")]
    if passport.calibration:
        rows += [("calibration", ", ".join(f"{k} {str(v)[:12] if k == 'sha256' else v}" for k, v in passport.calibration.items()))]
    rows += [("metrics", ", ".join(f"{k} {v:g}" for k, v in passport.metrics.items()))] if passport.metrics else []
    rows += [("verified", ", ".join(f"{k} {v}" for k, v in passport.verified.items()))] if passport.verified else []
    rows += [("made with", ", ".join(f"{k} {v}" for k, v in passport.versions.items()))] if passport.versions else []
    table(rows)
    console.print()
    kinds = [(k.name, f"{k.count}", f"{k.macs:,}", size(k.weight_bytes), size(k.written)) for k in counted.kinds]
    table([("operator", "count", "MACs", "constants", "writes"), *kinds])
    if not passport_path(path).is_file():
        console.print(f"no passport ({passport_path(path).name}) beside it, so scales and zero points are not known")


def _memory(counted: Counts) -> list[tuple[str, str]]:
    """Activations and traffic: as the graph stands, and as a device that joins element-by-element operators would do."""
    plain, fused = counted.memory, counted.fused
    rows = [("activations", f"at most {size(fused.peak)} at a time (at %{fused.peak_at}); {size(plain.peak)} if each result is stored")]
    rows += [("moved", f"about {size(fused.moved)}, read and written; {size(plain.moved)} if each result is stored")]
    total = sum(kind.written for kind in counted.kinds) or 1
    overhead = [(k, k.written / total) for k in counted.kinds if k.name in ("TRANSPOSE", "RESCALE")]
    text = ", ".join(f"{k.count} {k.name} write {size(k.written)} ({share:.1%} of what is written)" for k, share in overhead)
    return [*rows, ("overhead", text or "no TRANSPOSE, no RESCALE")]


def _shaders(path: Path) -> bool:
    """List the segments of a file that has compute shaders among them, which only a device can run.

    Returns:
        False, and nothing printed, where it is no such file.
    """
    try:
        file = container.decode(container.map_file(path)) if path.suffix == ".vgf" else None
    except InputError:
        return False
    if file is None or all(m.kind.name == "Graph" for m in file.modules):
        return False
    stdout().print(f"{path}  {size(path.stat().st_size)}, {plural(len(file.segments), 'segment')}; compute shaders run on Vulkan only")
    rows = [("segment", "kind", "entry point", "dispatch", "reads", "writes")]
    for segment in file.segments:
        module = file.modules[segment.module]
        ends = [", ".join(f"binding {b.binding} {_resource(file, b)}" for b in side) for side in (segment.inputs, segment.outputs)]
        kind = {"Graph": "TOSA graph", "Compute": "compute shader"}.get(module.kind.name, module.kind.name)
        rows.append((segment.name, kind, module.entry, "x".join(map(str, segment.dispatch)) or "-", *ends))
    table(rows)
    return True


def _resource(file: container.Container, binding: container.Binding) -> str:
    resource = file.resources[binding.resource]
    return f"{FORMAT_NAMES.get(resource.format, resource.format)}{list(resource.shape)}"


def doctor() -> bool:
    """Print what is installed and works.

    Returns:
        Whether everything that is required does.
    """
    found = checks(_one_operator)
    marks = {(True, True): "ok", (True, False): "ok", (False, True): "missing", (False, False): "optional"}
    table([(marks[c.ok, c.required], c.name, c.found) for c in found], indent=0)
    for check in found:
        if not check.ok and check.remedy:
            stdout().print(f"{check.name}: {check.remedy}")
    return all(check.ok or not check.required for check in found)


def _one_operator() -> bytes:
    builder = Builder()
    return to_vgf(builder.finish([builder.emit(Abs(), builder.input("x", DType.INT32, (4,)))]))
