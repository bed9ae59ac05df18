"""Control flow: If, Loop and Scan, as modules that own their bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphmod.errors import RefusedError
from graphmod.pytorch.operator import Operator
from graphmod.pytorch.registry import Outputs, operator
from graphmod.pytorch.values import Value, device_of

Places = Sequence[Sequence[int]]


class ControlFlow(nn.Module):
    """A control-flow operator: it is called with its own inputs and then with all tensors that its bodies capture.

    Parameters
    ----------
    bodies : sequence of nn.Module
    captured : sequence of sequence of int
        For every body, which of the captured tensors it reads.
    n_inputs : int
        How many of the arguments are the operator's own inputs.
    """

    def __init__(self, bodies: Sequence[nn.Module], captured: Places, n_inputs: int) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(bodies)
        self.captured = [list(places) for places in captured]
        self.n_inputs = n_inputs

    def run_body(self, index: int, inputs: Sequence[Value], args: Sequence[Value]) -> list[Value]:
        """Run a body on its inputs and on those of the captured tensors that it reads."""
        outer = args[self.n_inputs :]
        made: tuple[Value, ...] = self.bodies[index](*inputs, *(outer[place] for place in self.captured[index]))
        return list(made)


class If(ControlFlow):
    """Runs the first body where the condition holds, else the second."""

    def forward(self, *args: Value) -> Value:
        """Return what the branch returns."""
        made = self.run_body(0 if bool(args[0]) else 1, (), args)
        return made[0] if len(made) == 1 else tuple(made)


class Loop(ControlFlow):
    """Runs its body as often as the trip count says and as long as the condition holds.

    Parameters
    ----------
    bodies, captured, n_inputs
        See :class:`ControlFlow`.
    n_states : int
        How many values go from one iteration to the next.
    empty : sequence of Tensor
        What every scan output is where there is no iteration.
    name : str
        The operator's name, for the error.
    max_iterations : int
        Iterations after which the loop is taken to be endless.
    """

    def __init__(
        self, bodies: Sequence[nn.Module], captured: Places, n_inputs: int, n_states: int, empty: Sequence[Tensor],
        name: str, max_iterations: int,
    ) -> None:  # fmt: skip
        super().__init__(bodies, captured, n_inputs)
        self.n_states = n_states
        self.empty = list(empty)
        self.name = name
        self.max_iterations = max_iterations

    def forward(self, *args: Value) -> Value:
        """Return the last states, and the other outputs of all iterations stacked."""
        trips, condition, *states = args[: self.n_inputs]
        limit = None if trips is None else int(trips)
        going = True if condition is None else bool(condition)
        device = device_of(*args)
        rows: list[list[Value]] = [[] for _ in self.empty]
        n = 0
        while going and (limit is None or n < limit):
            if n == self.max_iterations:
                raise RefusedError(
                    f"Loop '{self.name}' has run {n} times without an end; if that is meant, raise max_iterations in "
                    "to_torch"
                )
            step = torch.tensor(n, dtype=torch.int64, device=device)
            again, *made = self.run_body(0, (step, torch.tensor(True, device=device), *states), args)
            going, states = bool(again), made[: self.n_states]
            for row, value in zip(rows, made[self.n_states :], strict=True):
                row.append(value)
            n += 1
        stacked = [torch.stack(row) if row else empty.to(device) for row, empty in zip(rows, self.empty, strict=True)]
        results = (*states, *stacked)
        return results[0] if len(results) == 1 else results


class Scan(ControlFlow):
    """Runs its body over slices of its inputs.

    Parameters
    ----------
    bodies, captured, n_inputs
        See :class:`ControlFlow`.
    n_states : int
        How many of the inputs go from one iteration to the next; the others are scanned.
    axes, backwards : sequence of int, sequence of bool
        The axis along which each scanned input is cut, and whether from its end.
    out_axes, out_backwards : sequence of int, sequence of bool
        The same for the outputs that are put together.
    batched : bool
        Whether all this happens for every element of a leading batch axis, as before opset 9.
    """

    def __init__(
        self, bodies: Sequence[nn.Module], captured: Places, n_inputs: int, n_states: int, axes: Sequence[int],
        backwards: Sequence[bool], out_axes: Sequence[int], out_backwards: Sequence[bool], *, batched: bool,
    ) -> None:  # fmt: skip
        super().__init__(bodies, captured, n_inputs)
        self.n_states = n_states
        self.axes, self.backwards = list(axes), list(backwards)
        self.out_axes, self.out_backwards = list(out_axes), list(out_backwards)
        self.batched = batched

    def forward(self, *args: Value) -> Value:
        """Return the last states, and the other outputs of all iterations put together."""
        if not self.batched:
            results = self._scan(args[: self.n_inputs], args, None)
        else:
            lengths, *inputs = args[: self.n_inputs]
            rows = [
                self._scan([value[i] for value in inputs], args, None if lengths is None else int(lengths[i]))
                for i in range(len(inputs[0]))
            ]
            results = [torch.stack(column) for column in zip(*rows, strict=True)]
        return results[0] if len(results) == 1 else tuple(results)

    def _scan(self, inputs: Sequence[Tensor], args: Sequence[Value], length: int | None) -> list[Tensor]:
        states, scanned = list(inputs[: self.n_states]), inputs[self.n_states :]
        whole = scanned[0].shape[self.axes[0]]
        n = whole if length is None else length
        rows: list[list[Tensor]] = []
        for step in range(n):
            slices = [
                value.select(axis, n - 1 - step if backwards else step)
                for value, axis, backwards in zip(scanned, self.axes, self.backwards, strict=True)
            ]
            made = self.run_body(0, (*states, *slices), args)
            states = made[: self.n_states]
            rows.append(made[self.n_states :])
        if not rows:
            raise RefusedError("a Scan over no elements has outputs whose shape is unknown; give it at least one")
        results = states
        for column, axis, backwards in zip(zip(*rows, strict=True), self.out_axes, self.out_backwards, strict=True):
            parts = list(reversed(column)) if backwards else list(column)
            parts += [torch.zeros_like(parts[0])] * (whole - n)
            results.append(torch.stack(parts, axis if axis >= 0 else parts[0].ndim + 1 + axis))
        return results


def _outputs(op: Operator, node: fx.Node) -> Outputs:
    n = len(op.proto.output)
    return node if n == 1 else op.items(node, n)


def _values(op: Operator) -> list[fx.Node | None]:
    return [op.optional(index) for index in range(len(op.proto.input))]


@operator("If")
def if_(op: Operator) -> Outputs:
    """Convert If; one whose condition is constant has been replaced by its branch before."""

    def build(bodies: Sequence[nn.Module], captured: Places) -> nn.Module:
        return If(bodies, captured, 1)

    return _outputs(op, op.bodies(build, ("then_branch", "else_branch"), op.input(0)))


@operator("Loop")
def loop(op: Operator) -> Outputs:
    """Convert Loop."""
    inputs = _values(op)
    inputs += [None] * (2 - len(inputs))
    n_states = len(inputs) - 2
    empty = [op.empty_output(index) for index in range(n_states, len(op.proto.output))]
    name = op.proto.name or next(iter(op.proto.output))

    def build(bodies: Sequence[nn.Module], captured: Places) -> nn.Module:
        return Loop(bodies, captured, len(inputs), n_states, empty, name, op.importer.options.max_iterations)

    return _outputs(op, op.bodies(build, ("body",), *inputs))


@operator("Scan", since=8)
def scan_of_batches(op: Operator) -> Outputs:
    """Convert Scan of opset 8, which has a batch axis and lengths of sequences."""
    n_scanned = op.attribute("num_scan_inputs", 1)
    directions = op.attribute("directions", [0] * n_scanned)
    n_states = len(op.proto.input) - 1 - n_scanned
    n_made = len(op.proto.output) - n_states

    def build(bodies: Sequence[nn.Module], captured: Places) -> nn.Module:
        return Scan(
            bodies, captured, len(op.proto.input), n_states, [0] * n_scanned, [bool(d) for d in directions],
            [0] * n_made, [False] * n_made, batched=True,
        )  # fmt: skip

    return _outputs(op, op.bodies(build, ("body",), *_values(op)))


@operator("Scan", since=9)
def scan(op: Operator) -> Outputs:
    """Convert Scan."""
    n_scanned = op.attribute("num_scan_inputs", 1)
    n_states = len(op.proto.input) - n_scanned
    n_made = len(op.proto.output) - n_states
    given: dict[str, Any] = {
        "axes": op.attribute("scan_input_axes", [0] * n_scanned),
        "backwards": [bool(d) for d in op.attribute("scan_input_directions", [0] * n_scanned)],
        "out_axes": op.attribute("scan_output_axes", [0] * n_made),
        "out_backwards": [bool(d) for d in op.attribute("scan_output_directions", [0] * n_made)],
    }

    def build(bodies: Sequence[nn.Module], captured: Places) -> nn.Module:
        return Scan(bodies, captured, len(op.proto.input), n_states, **given, batched=False)

    return _outputs(op, op.bodies(build, ("body",), *_values(op)))
