"""`tosaic inspect` and `tosaic doctor`: what is in a file, and what is installed."""

from __future__ import annotations

import dataclasses
import json

from tosaic.artifact import Artifact, load
from tosaic.cli.config import InspectOptions
from tosaic.cli.console import size, stdout, table
from tosaic.cli.export import port_line
from tosaic.emit.passport import passport_path
from tosaic.emit.vgf import to_vgf
from tosaic.execute.doctor import checks
from tosaic.report.counts import Counts, count
from tosaic.tosa.graph import Builder
from tosaic.tosa.ops import Abs
from tosaic.tosa.types import DType


def inspect(options: InspectOptions) -> None:
    """Print a summary of a file, its graph, its ledger, or everything as JSON."""
    artifact = load(options.file)
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
        stdout().print(f"{options.file} has no ledger: it is in the passport, {passport_path(options.file)}, which is missing or has none")
    table([(row.precision, row.name, row.aten, row.reason, row.location.partition(" | ")[2]) for row in artifact.passport.ledger], indent=0)


def _json(artifact: Artifact, counted: Counts) -> None:
    passport = artifact.passport.model_dump()
    known = {**dataclasses.asdict(counted), "spec": str(counted.spec)}
    stdout().print(json.dumps({"file": str(artifact.path), "passport": passport, "graph": known}, indent=1))


def _summary(artifact: Artifact, counted: Counts) -> None:
    passport, path = artifact.passport, artifact.path
    assert path is not None
    console = stdout()
    console.print(f"{path}  {size(path.stat().st_size)}, {sum(counted.operators.values())} operators")
    needs = f"its operators need {counted.spec}"
    rows = [("spec", f"{passport.spec}; {needs}" if passport.spec and passport.spec != str(counted.spec) else passport.spec or needs)]
    rows += [(kind, port_line(port)) for kind, ports in (("input", passport.inputs), ("output", passport.outputs)) for port in ports]
    rows += [("operators", ", ".join(f"{name} {count}" for name, count in counted.operators.items()))]
    rows += [("arithmetic", f"{counted.macs:,} multiply-accumulates")]
    rows += [("memory", f"{size(counted.weight_bytes)} of constants; operators write {size(counted.value_bytes)} in all")]
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
    if not passport_path(path).is_file():
        console.print(f"no passport ({passport_path(path).name}) beside it, so scales and zero points are not known")


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
