"""How much memory a traced program needs, from its operations alone: nothing is compiled or run.

The program is taken as XLA runs it in principle. Element-wise operations are computed inside those
that use them and need no memory of their own; a result stays from its operation to its last use.
What a compiler adds (work space, copies in other layouts) is not counted, and neither is what it
saves by another order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

LOOPS = ('scan', 'while', 'cond')
# Operations that read and write memory: neither their inputs nor their results are fused away.
WHOLE = (
    *LOOPS,
    *('conv_general_dilated', 'dot_general', 'gather', 'scatter', 'scatter-add', 'sort', 'cumsum'),
    *('dynamic_slice', 'dynamic_update_slice', 'reduce_window', 'reduce_window_sum', 'fft'),
    *('reduce_window_max', 'select_and_gather_add', 'select_and_scatter_add'),
)
REDUCTIONS = ('reduce_sum', 'reduce_max', 'reduce_min', 'reduce_and', 'reduce_or', 'argmax')
SAME_MEMORY = ('reshape', 'squeeze', 'expand_dims', 'copy', 'optimization_barrier')


@dataclasses.dataclass(eq=False)
class Value:
    """An array of the program; `places` are the values in memory from which it is computed."""

    size: int
    places: frozenset[Value] = frozenset()


@dataclasses.dataclass(eq=False)
class Operation:
    """An operation on values; a loop has in `inside` the bytes that its body needs."""

    name: str
    inputs: list[Value]
    results: list[Value]
    inside: int = 0

    @property
    def results_in_place(self) -> list[Value]:
        """Those of its results that are in memory."""
        return [value for value in self.results if value.places == {value}]


def kept_bytes(function: Callable[[Any], jax.Array], params: Any, *others: Any) -> int:
    """The bytes that the backward pass of a loss keeps from the forward pass.

    Args:
        function: `(params, *others) -> loss`, differentiated by its first argument.
        params, others: shapes of the arguments; what is kept of these is not counted.
    """

    def backward(params: Any, *others: Any) -> Any:
        return jax.vjp(lambda p: function(p, *others), params)[1]

    jaxpr = jax.make_jaxpr(backward)(params, *others).jaxpr
    arguments = {*jaxpr.invars, *jaxpr.constvars}
    kept = {v for v in jaxpr.outvars if not isinstance(v, Literal) and v not in arguments}
    return sum(_bytes_of(v.aval) for v in kept)


def peak_bytes(function: Callable[..., Any], *arguments: Any) -> int:
    """The most bytes of results that a function has in memory at a time; arguments do not count."""
    return _peak(jax.make_jaxpr(function)(*arguments).jaxpr)


def _peak(jaxpr: Jaxpr) -> int:
    values = {v: Value(_bytes_of(v.aval)) for v in (*jaxpr.constvars, *jaxpr.invars)}
    operations = list(_flat(jaxpr, values))
    outputs = [values[v] for v in jaxpr.outvars if not isinstance(v, Literal)]
    operations = _needed(operations, set(outputs))
    _place(operations, set(outputs))
    ends = _last_uses(operations, outputs)
    live = most = 0
    for time, operation in enumerate(operations):
        live += sum(value.size for value in operation.results_in_place)
        most = max(most, live + operation.inside)
        live -= sum(value.size for value in ends.get(time, ()))
    return most


def _flat(jaxpr: Jaxpr, values: dict[Any, Value]) -> Iterator[Operation]:
    """The operations of a program, with those of the functions that it calls in their place."""

    def value_of(variable: Any) -> Value:
        return Value(0) if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        name, inputs = equation.primitive.name, [value_of(v) for v in equation.invars]
        bodies = list(_bodies(equation.params))
        called = bodies[0] if len(bodies) == 1 and name not in LOOPS else None
        if called is not None and len(called.invars) == len(inputs):
            inner = {v: Value(_bytes_of(v.aval)) for v in called.constvars}
            inner |= dict(zip(called.invars, inputs))
            yield from _flat(called, inner)
            for outer, v in zip(equation.outvars, called.outvars):
                values[outer] = Value(0) if isinstance(v, Literal) else inner[v]
            continue
        results = [Value(_bytes_of(v.aval)) for v in equation.outvars]
        values.update(zip(equation.outvars, results))
        inside = max(map(_peak, bodies), default=0) if name in LOOPS else 0
        yield Operation(name, inputs, results, inside)


def _bodies(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, ClosedJaxpr | Jaxpr):
                yield one.jaxpr if isinstance(one, ClosedJaxpr) else one


def _needed(operations: list[Operation], wanted: set[Value]) -> list[Operation]:
    """The operations on which some values depend."""
    wanted, kept = set(wanted), []
    for operation in reversed(operations):
        if wanted.intersection(operation.results):
            wanted.update(operation.inputs)
            kept.append(operation)
    return kept[::-1]


def _place(operations: list[Operation], outputs: set[Value]) -> None:
    """Decide which values are in memory, and from which ones each of the others is computed."""
    whole = set(outputs)
    for operation in reversed(operations):
        renamed = operation.name in SAME_MEMORY and whole.intersection(operation.results)
        if renamed or operation.name in WHOLE:
            whole.update(operation.inputs)
    for operation in operations:
        sources = frozenset().union(*(value.places for value in operation.inputs))
        for index, value in enumerate(operation.results):
            if operation.name in SAME_MEMORY and len(operation.inputs) > index:
                value.places = operation.inputs[index].places
            elif operation.name in (*WHOLE, *REDUCTIONS) or value in whole:
                value.places = frozenset((value,))
            else:
                value.places = sources


def _last_uses(operations: list[Operation], outputs: list[Value]) -> dict[int, list[Value]]:
    """The values in memory whose last use is each operation; those of the outputs stay."""
    last: dict[Value, int] = {}
    for time, operation in enumerate(operations):
        own = operation.results_in_place
        if own:
            last.update(dict.fromkeys(own, time))
            for value in operation.inputs:
                last.update(dict.fromkeys(value.places, time))
    for value in outputs:
        for place in value.places:
            last.pop(place, None)
    ends: dict[int, list[Value]] = {}
    for value, time in last.items():
        ends.setdefault(time, []).append(value)
    return ends


def _bytes_of(aval: Any) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize if hasattr(aval, 'shape') else 0
