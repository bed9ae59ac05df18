"""What is there and does nothing: operators, constants, inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from graphmod.rewrite.element_types import STANDARD
from graphmod.rewrite.recipe import Edit
from graphmod.rewrite.smells.evidence import Evidence, counted, quoted, stored
from graphmod.rewrite.smells.registry import Finding, smell

VARIADIC = onnx.defs.OpSchema.FormalParameterOption.Variadic

_COPIES = ("Identity", "Dropout")
_INNER = "what lies in bodies and functions stays as it is; inline it first"


@smell("dead_operator")
def _dead_operators(evidence: Evidence) -> Iterator[Finding]:
    """Operators on which no output depends."""
    points, live = evidence.wiring.points, evidence.live
    dead = [i for i, point in enumerate(points) if point.kind == "operator" and i not in live]
    main = [i for i in dead if not points[i].scope]
    if main:
        yield _dead(evidence, main, Edit("simplify"), "")
    if len(main) < len(dead):
        yield _dead(evidence, [i for i in dead if points[i].scope], None, _INNER)


def _dead(evidence: Evidence, dead: list[int], edit: Edit | None, reason: str) -> Finding:
    wired = evidence.wiring
    names = tuple(wired.points[i].name for i in dead)
    held = {c for i in dead for c in wired.held[i].values()}
    alone = [c for c in held if all(point not in evidence.live for point, _ in evidence.holders[c])]
    size = sum(stored(wired.constants[c]) for c in alone)
    told = f"no output depends on {counted(len(names), 'operator')}, {quoted(names)}"
    told += f", which alone {'read' if len(names) > 1 else 'reads'} {size:,} bytes of constants" if size else ""
    return Finding(told, names, (), edit, reason, n_bytes=size, n_operators=len(names))


@smell("unused_constant")
def _unused_constants(evidence: Evidence) -> Iterator[Finding]:
    """Initializers and Constant operators that nothing reads."""
    model = evidence.model
    quantized = {
        entry.value
        for annotation in model._proto.graph.quantization_annotation
        for entry in annotation.quant_parameter_tensor_names
    }
    kept = quantized | evidence.overridable
    unused = [c for i, c in evidence.constants() if i not in evidence.holders and c.name not in kept]
    main = [c for c in unused if c.name in model.constants]
    for some, edit, reason in (
        (main, Edit("simplify"), ""),
        ([c for c in unused if c.name not in model.constants], None, _INNER),
    ):
        if some:
            names, size = tuple(c.name for c in some), sum(map(stored, some))
            told = f"nothing reads {counted(len(names), 'constant')} of {size:,} bytes, {quoted(names)}"
            yield Finding(told, (), names, edit, reason, n_bytes=size)


@smell("unused_input")
def _unused_inputs(evidence: Evidence) -> Iterator[Finding]:
    """Inputs that nothing reads."""
    model = evidence.model
    names = tuple(name for name in model.inputs if name not in model.readers and name not in model.outputs)
    if names:
        reason = "who runs the model feeds them, so they are part of how it is called"
        yield Finding(
            f"nothing reads {counted(len(names), 'input')} of the model, {quoted(names)}", (), names, None, reason
        )


@smell("unread_output")
def _unread_outputs(evidence: Evidence) -> Iterator[Finding]:
    """Operators that make as many tensors as are asked for, and more are asked for than are read."""
    model = evidence.model
    for name, operator in zip(model.operator_names, model.operators, strict=True):
        made = [tensor for tensor in operator.output if tensor]
        unread = tuple(tensor for tensor in made if tensor not in model.readers and tensor not in model.outputs)
        if not unread or len(unread) == len(made) or operator.domain not in STANDARD:
            continue
        version = model.opset
        if not onnx.defs.has(operator.op_type, version, ""):
            continue
        formal = onnx.defs.get_schema(operator.op_type, version, "").outputs
        if formal and formal[-1].option == VARIADIC:
            told = f"{len(unread)} of {len(made)} outputs of {operator.op_type} '{name}' "
            told += f"{'is' if len(unread) == 1 else 'are'} not read, {quoted(unread)}"
            yield Finding(
                told, (name,), unread, None, "an operator that makes only what is read has to be chosen by hand"
            )


@smell("repeated_output")
def _repeated_outputs(evidence: Evidence) -> Iterator[Finding]:
    """Outputs of the model that are copies of each other, of an input or of a constant."""
    model = evidence.model
    first: dict[str, str] = {name: f"input '{name}'" for name in model.inputs}
    first |= {name: f"constant '{name}'" for name in model.constants}
    for output in model.outputs:
        root = output
        while (place := model.producer.get(root)) is not None and model.operators[place].op_type in _COPIES:
            root = model.operators[place].input[0]
        if root in first:
            reason = "outputs are part of how the model is called; 'graphmod hide' takes one away"
            yield Finding(f"output '{output}' is a copy of {first[root]}", (), (output,), None, reason)
        first.setdefault(root, f"output '{output}'")


@smell("overridable_initializer")
def _overridable_initializers(evidence: Evidence) -> Iterator[Finding]:
    """Initializers that are inputs too: a caller may override them, so no runtime can prepare them."""
    names = tuple(name for name in evidence.model.initializers if name in evidence.overridable)
    if names:
        told = f"{counted(len(names), 'initializer')} may be overridden by the caller, {quoted(names)}"
        yield Finding(told, (), names, None, "who runs the model may feed them")
