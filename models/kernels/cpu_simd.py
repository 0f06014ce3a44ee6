"""What numba cannot say: sums of products in vector lanes, in an order that is ours.

A dot product here is 16 running sums, lane l adding up the elements l, l + 16, l + 32 ..., folded
in halves at the end. Whatever tile it is computed in, its bits are the same: no kernel here lets
the compiler reorder a sum.
"""
# pyright: basic, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16  # floats: one AVX-512 register, two AVX2 ones, four of NEON
VECTOR = ir.VectorType(ir.FloatType(), LANES)
NOTHING = ir.Constant(VECTOR, [0.0] * LANES)
INT, BYTES = ir.IntType(64), ir.IntType(8).as_pointer()


def tile(num_left: int, num_right: int, num_next: int = 0) -> Any:
    """An op for kernels: `op(a, rows_of_a, b, rows_of_b, next_of_b)`, the dot product of each row
    of the one with each of the other, as a tuple of num_left * num_right floats, b's rows running
    fastest.

    a and b are C-contiguous [.., K] float32; rows are tuples of indices, not checked. Meanwhile the
    num_next rows that b is to be read at next are asked for: the hardware foresees one stream of
    memory, neither several at once nor the neurons of a list. They may lie past b's end.
    """

    @intrinsic
    def dots(typing: Any, a: Any, a_rows: Any, b: Any, b_rows: Any, next_rows: Any) -> Any:
        result = types.UniTuple(types.float32, num_left * num_right)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            emit = _Emitter(context, builder)
            a, b = (emit.array(signature.args[i], args[i]) for i in (0, 2))
            left = emit.rows(a, signature.args[1], args[1])
            right = emit.rows(b, signature.args[3], args[3])
            upcoming = emit.rows(b, signature.args[4], args[4])
            assert (len(left), len(right), len(upcoming)) == (num_left, num_right, num_next)
            pairs = [(x, y) for x in range(num_left) for y in range(num_right)]
            totals = [emit.zeros() for _ in pairs]

            def add(k: Any, mask: Any) -> None:
                for row in upcoming:
                    emit.prefetch(row, k)
                xs, ys = ([emit.load(row, k, mask) for row in rows] for rows in (left, right))
                for total, (x, y) in zip(totals, pairs, strict=True):
                    builder.store(emit.fma(xs[x], ys[y], builder.load(total)), total)

            emit.over(a.length, add)
            sums = emit.fold([builder.load(total) for total in totals])
            return context.make_tuple(builder, signature.return_type, sums)

        return result(a, a_rows, b, b_rows, next_rows), generate

    return dots


def row_sum(num_rows: int) -> Any:
    """An op for kernels: `op(total, weights, table, rows, low)` adds weights[i] * table[rows[i],
    low + k] to total[k] for every k, one row after the other.

    total is [n], table [.., K], both C-contiguous float32; weights and rows are tuples.
    """

    @intrinsic
    def add_rows(typing: Any, total: Any, weights: Any, table: Any, rows: Any, low: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> None:
            emit = _Emitter(context, builder)
            total, table = (emit.array(signature.args[i], args[i]) for i in (0, 2))
            low = context.cast(builder, args[4], signature.args[4], types.intp)
            rows = emit.rows(table, signature.args[3], args[3], low)
            weights = [emit.spread(builder.extract_value(args[1], i)) for i in range(num_rows)]

            def add(k: Any, mask: Any) -> None:
                value = emit.load(total.data, k, mask)
                for weight, row in zip(weights, rows, strict=True):
                    value = emit.fma(weight, emit.load(row, k, mask), value)
                emit.store(value, total.data, k, mask)

            emit.over(total.length, add)

        return types.void(total, weights, table, rows, low), generate

    return add_rows


@njit
def exp(x):
    """e ** x to one part in 10 million, without a branch, so that a loop over it becomes vectors.

    x = n ln 2 + r; e ** r by the polynomial of Cephes' expf, 2 ** n by writing the exponent's bits.
    """
    x = min(max(x, np.float32(-87.3)), np.float32(88.0))
    n = np.floor(x * np.float32(1.442695041) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    power = (np.int32(n) + np.int32(127)) << np.int32(23)
    return (p * r * r + r + np.float32(1)) * np.int32(power).view(np.float32)


class _Array(NamedTuple):
    """An array argument as LLVM sees it; `length` is the last dimension's."""

    data: Any
    row_bytes: Any
    length: Any


class _Emitter:
    """Writes LLVM instructions on vectors of LANES floats."""

    def __init__(self, context: Any, builder: Any) -> None:
        self.context, self.builder = context, builder

    def array(self, type_: Any, value: Any) -> _Array:
        array = self.context.make_array(type_)(self.context, self.builder, value)
        data = self.builder.bitcast(array.data, BYTES)
        length = cgutils.unpack_tuple(self.builder, array.shape)[-1]
        return _Array(data, self.builder.mul(length, INT(4)), length)

    def rows(self, array: _Array, types_: Any, indices: Any, low: Any = None) -> list[Any]:
        """Where those rows of an array begin, `low` floats into each."""
        starts: list[Any] = []
        for i, type_ in enumerate(types_):
            index = self.builder.extract_value(indices, i)
            index = self.context.cast(self.builder, index, type_, types.intp)
            row = self._at(array.data, self.builder.mul(index, array.row_bytes))
            starts.append(row if low is None else self._at(row, self._bytes(low)))
        return starts

    def over(self, length: Any, body: Callable[[Any, Any], None]) -> None:
        """`body(k, None)` for each whole vector; `body(k, mask)` for what is left, if any."""
        whole = self.builder.and_(length, INT(-LANES))
        steps = cgutils.for_range_slice(self.builder, INT(0), whole, INT(LANES), intp=INT)
        with steps as (k, _):
            body(k, None)
        rest = self.builder.icmp_signed("<", whole, length)
        with self.builder.if_then(rest, likely=False):
            numbers = ir.Constant(ir.VectorType(INT, LANES), list(range(LANES)))
            left = self.spread(self.builder.sub(length, whole))
            body(whole, self.builder.icmp_signed("<", numbers, left))

    def zeros(self) -> Any:
        """A vector variable, which LLVM will keep in a register."""
        pointer = cgutils.alloca_once(self.builder, VECTOR)
        self.builder.store(NOTHING, pointer)
        return pointer

    def spread(self, scalar: Any) -> Any:
        """The same number in every lane."""
        first = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        vector = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
        vector = self.builder.insert_element(vector, scalar, ir.IntType(32)(0))
        return self.builder.shuffle_vector(vector, vector, first)

    def load(self, row: Any, k: Any, mask: Any) -> Any:
        """Elements k .. k + LANES of a row; zero where masked, which leaves a sum what it is."""
        pointer = self._vector_at(row, k)
        if mask is None:
            value = self.builder.load(pointer)
            value.align = 4
            return value
        name, align = f"llvm.masked.load.v{LANES}f32.p0v{LANES}f32", ir.IntType(32)(4)
        return self._call(name, VECTOR, [pointer, align, mask, NOTHING])

    def store(self, value: Any, row: Any, k: Any, mask: Any) -> None:
        pointer = self._vector_at(row, k)
        if mask is None:
            self.builder.store(value, pointer).align = 4
            return
        name, align = f"llvm.masked.store.v{LANES}f32.p0v{LANES}f32", ir.IntType(32)(4)
        self._call(name, ir.VoidType(), [value, pointer, align, mask])

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        """x * y + z, rounded once."""
        return self._call(f"llvm.fma.v{LANES}f32", VECTOR, [x, y, z])

    def prefetch(self, row: Any, k: Any) -> None:
        """Ask for the line of element k; where there is no memory nothing happens.

        Into the second-level cache: asked for in the first, most requests find its queue full.
        """
        flag = ir.IntType(32)
        read, level, data = flag(0), flag(2), flag(1)
        address = self._at(row, self._bytes(k))
        self._call("llvm.prefetch.p0i8", ir.VoidType(), [address, read, level, data])

    def fold(self, vectors: list[Any]) -> list[Any]:
        """The sum of each vector's lanes: the upper half added to the lower, again and again.

        Halves of two vectors share a register, so the last vector holds one sum a lane.
        """
        num_sums, group = len(vectors), LANES  # lanes of a vector that belong to the same sum
        while group > 1:
            pairs = list(zip(vectors[::2], vectors[1::2], strict=False)) or [(vectors[0],) * 2]
            width = 2 * LANES if len(vectors) > 1 else vectors[0].type.count
            lower = [lane for lane in range(width) if lane % group < group // 2]
            upper = [lane + group // 2 for lane in lower]
            vectors = [
                self.builder.fadd(self._pick(a, b, lower), self._pick(a, b, upper))
                for a, b in pairs
            ]
            group //= 2
        (sums,) = vectors
        return [self.builder.extract_element(sums, ir.IntType(32)(i)) for i in range(num_sums)]

    def _pick(self, a: Any, b: Any, lanes: list[int]) -> Any:
        chosen = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
        return self.builder.shuffle_vector(a, b, chosen)

    def _bytes(self, num_floats: Any) -> Any:
        return self.builder.mul(num_floats, INT(4))

    def _at(self, start: Any, offset: Any) -> Any:
        return self.builder.gep(start, [offset])

    def _vector_at(self, row: Any, k: Any) -> Any:
        return self.builder.bitcast(self._at(row, self._bytes(k)), VECTOR.as_pointer())

    def _call(self, name: str, result: Any, arguments: list[Any]) -> Any:
        signature = ir.FunctionType(result, [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(self.builder.module, signature, name)
        return self.builder.call(function, arguments)
