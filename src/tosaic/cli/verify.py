"""`tosaic verify`: the same inputs through every executor; equal, or the first operator that is not."""

from __future__ import annotations

from tosaic.artifact import Artifact, load
from tosaic.cli.config import VerifyOptions
from tosaic.cli.console import plural, stdout, steps, table
from tosaic.cli.inputs import read_inputs
from tosaic.emit.passport import passport_path, write_passport
from tosaic.errors import InputError
from tosaic.execute.compare import Difference
from tosaic.verification import FAILED, MISSING, Check, tolerance_text


def verify(options: VerifyOptions) -> bool:
    """Compare the executors and print what was found.

    Returns:
        Whether all agree; false too where one failed.
    """
    if options.against is not None:
        if options.device != "cpu":
            raise InputError(f"--against compares on the cpu, and not on {options.device}", remedy="leave --device out")
        from tosaic.cli import against

        return against.compare(options)
    artifact = load(options.file)
    inputs = read_inputs(artifact, options.input, options.image_mean, options.image_std) if options.input else None
    with steps() as at:
        doing = ""

        def progress(what: str, done: int, total: int) -> None:
            nonlocal doing
            if what != doing:
                at.begin(what, total if total > 1 else None)
                doing = what
            at.at(done)

        found = artifact.verify(inputs, tolerance=options.ulp, each=options.each, device=options.device, progress=progress)
    if passport_path(options.file).is_file():
        write_passport(artifact.passport, options.file)
    rows: list[tuple[str, str]] = []
    for check in found.checks:
        lines = _lines(check, len(found.results), found.inputs)
        rows += [(check.executor if i == 0 else "", line) for i, line in enumerate(lines)]
    table(rows, indent=0)
    if found.has_floats:
        stdout().print(f"floats may be apart by {tolerance_text(found.tolerance)}")
    for check in found.checks:
        if check.first is not None:
            _first(artifact, check)
    return found.agrees


def _lines(check: Check, samples: int, inputs: str) -> list[str]:
    if check.verdict == MISSING:
        return [f"not available: {check.detail}"]
    if check.verdict == FAILED:
        return [f"failed: {check.detail}"]
    if check.executor == "simulator":
        return [f"computed {plural(samples, f'{inputs} sample')} in {check.seconds:.2f} seconds"]
    return [f"{name}: {compared}" for name, compared in check.outputs.items()]


def _first(artifact: Artifact, check: Check) -> None:
    """The operator, where it is, what it was given, and what came out."""
    finding = check.first
    assert finding is not None
    node = finding.node
    operands = ", ".join(f"%{v.name}: {v.type}" for v in node.inputs)
    how = "the first operator that fails" if finding.difference is None else "the first operator whose result differs"
    if not finding.alone:
        how = "each operator by itself agrees; from the inputs on, the first result that differs"
    console = stdout()
    console.print(f"\n{how} on {check.executor}:")
    rows = [("operator", f"{node.op.NAME}({operands})"), ("result", f"%{finding.value.name}: {finding.value.type}")]
    if finding.together:
        unseen = " and ".join(n.op.NAME for n in finding.together)
        rows += [("or before it", f"{unseen}, of whose result {check.executor} shows nothing")]
    rows += [("in the model", artifact.location(node) or "not known: the file has no locations")]
    if finding.difference is None:
        rows += [("failure", finding.failure)]
    else:
        rows += [("difference", str(finding.difference)), *_examples(finding.difference, check.executor)]
    table(rows)


def _examples(found: Difference, executor: str) -> list[tuple[str, str]]:
    return [("", f"at {list(e.index)}: simulator {e.expected:.9g}, {executor} {e.found:.9g}") for e in found.examples]
