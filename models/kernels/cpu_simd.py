"""What numba cannot say: dot products in vector lanes, in an order of summation that is ours, and an
exponential that the compiler can turn into vectors.

A dot product here is 16 running sums, lane l adding up the elements l, l + 16, l + 32 ..., folded
in halves at the end. Whatever tile it is computed in, its bits are the same: no kernel here lets
the compiler reorder a sum.
"""
# pyright: basic, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16  # floats: one AVX-512 register, two AVX2 ones, four of NEON
VECTOR = ir.VectorType(ir.FloatType(), LANES)
INT, BYTES = ir.IntType(64), ir.IntType(8).as_pointer()


def tile(num_left: int, num_right: int, *, ahead: int = 0) -> Any:
    """An op for kernels: `op(a, rows_of_a, b, rows_of_b)`, the dot product of each row of the one
    with each of the other, as a tuple of num_left * num_right floats, b's rows running fastest.

    a and b are C-contiguous [.., K] float32; the rows are tuples of indices, not checked. With
    `ahead` the rows of b that many further are asked for meanwhile: the hardware foresees one
    stream of memory, but not several at once.
    """

    @intrinsic
    def dots(typing: Any, a: Any, a_rows: Any, b: Any, b_rows: Any) -> Any:
        signature = types.UniTuple(types.float32, num_left * num_right)(a, a_rows, b, b_rows)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            emit = _Emitter(context, builder, signature.args, args)
            left = [emit.row(0, i) for i in range(num_left)]
            right = [emit.row(2, j) for j in range(num_right)]
            pairs = [(x, y) for x in range(num_left) for y in range(num_right)]
            totals = [emit.variable(VECTOR, [0.0] * LANES) for _ in pairs]

            def add(load: Any, k: Any) -> None:
                xs, ys = [load(row, k) for row in left], [load(row, k) for row in right]
                for total, (x, y) in zip(totals, pairs, strict=True):
                    emit.add_product(total, xs[x], ys[y])

            with emit.loop_over_whole_vectors() as k:
                for row in right if ahead else []:
                    emit.prefetch(row, k, ahead)
                add(emit.load, k)
            with emit.if_elements_are_left():
                add(emit.load_rest, emit.num_whole)
            sums = [emit.fold(builder.load(total)) for total in totals]
            return context.make_tuple(builder, signature.return_type, sums)

        return signature, generate

    return dots


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


class _Emitter:
    """Writes LLVM instructions for one pair of [.., K] arrays."""

    def __init__(self, context: Any, builder: Any, arg_types: Any, args: Any) -> None:
        self.context, self.builder, self.types, self.args = context, builder, arg_types, args
        self.arrays = {
            i: context.make_array(arg_types[i])(context, builder, args[i]) for i in (0, 2)
        }
        self.strides = {
            i: cgutils.unpack_tuple(builder, array.strides)[-2] for i, array in self.arrays.items()
        }
        self.length = cgutils.unpack_tuple(builder, self.arrays[0].shape)[-1]
        self.num_whole = builder.and_(self.length, INT(-LANES))

    def row(self, array: int, place: int) -> Any:
        """Where the row begins that stands at `place` of the tuple behind the array."""
        index = self.context.cast(
            self.builder,
            self.builder.extract_value(self.args[array + 1], place),
            self.types[array + 1][place],
            types.intp,
        )
        data = self.builder.bitcast(self.arrays[array].data, BYTES)
        return self.builder.gep(data, [self.builder.mul(index, self.strides[array])])

    def variable(self, type_: Any, value: Any) -> Any:
        """A local that LLVM will keep in a register; set here, also in a second turn of a loop."""
        pointer = cgutils.alloca_once(self.builder, type_)
        self.builder.store(ir.Constant(type_, value), pointer)
        return pointer

    @contextmanager
    def loop_over_whole_vectors(self) -> Iterator[Any]:
        start, step = INT(0), INT(LANES)
        with cgutils.for_range_slice(self.builder, start, self.num_whole, step, intp=INT) as (k, _):
            yield k

    def if_elements_are_left(self) -> Any:
        rest = self.builder.icmp_signed("<", self.num_whole, self.length)
        return self.builder.if_then(rest, likely=False)

    def load(self, row: Any, k: Any) -> Any:
        value = self.builder.load(self._address(row, k))
        value.align = 4
        return value

    def load_rest(self, row: Any, k: Any) -> Any:
        """The elements from k to the row's end, and zeros: 0 * 0 leaves a sum what it is."""
        lanes = ir.VectorType(INT, LANES)
        left = ir.Constant(lanes, ir.Undefined)
        for lane in range(LANES):
            left = self.builder.insert_element(
                left, self.builder.sub(self.length, k), ir.IntType(32)(lane)
            )
        present = self.builder.icmp_signed("<", ir.Constant(lanes, list(range(LANES))), left)
        zeros, bits = ir.Constant(VECTOR, [0.0] * LANES), ir.IntType(32)
        load = self._function(
            f"llvm.masked.load.v{LANES}f32.p0v{LANES}f32",
            VECTOR,
            [VECTOR.as_pointer(), bits, present.type, VECTOR],
        )
        return self.builder.call(load, [self._address(row, k), bits(4), present, zeros])

    def _address(self, row: Any, k: Any) -> Any:
        address = self.builder.gep(row, [self.builder.mul(k, INT(4))])
        return self.builder.bitcast(address, VECTOR.as_pointer())

    def _function(self, name: str, result: Any, arguments: list[Any]) -> Any:
        signature = ir.FunctionType(result, arguments)
        return cgutils.get_or_insert_function(self.builder.module, signature, name)

    def add_product(self, total: Any, x: Any, y: Any) -> None:
        """total = fma(x, y, total): one rounding."""
        fma = self._function(f"llvm.fma.v{LANES}f32", VECTOR, [VECTOR] * 3)
        self.builder.store(self.builder.call(fma, [x, y, self.builder.load(total)]), total)

    def prefetch(self, row: Any, k: Any, num_rows: int) -> None:
        """Ask for what lies `num_rows` rows further; past the end of the array it does nothing.

        Into the second-level cache: asked for in the first, most requests find its queue full.
        """
        ahead = self.builder.mul(self.strides[2], INT(num_rows))
        address = self.builder.gep(row, [self.builder.add(ahead, self.builder.mul(k, INT(4)))])
        flag = ir.IntType(32)
        fetch = self._function("llvm.prefetch.p0i8", ir.VoidType(), [BYTES, flag, flag, flag])
        self.builder.call(fetch, [address, flag(0), flag(2), flag(1)])  # to read; level 2; data

    def fold(self, vector: Any) -> Any:
        """Add the upper half of the lanes to the lower one until one is left."""
        width = LANES
        while width > 1:
            width //= 2
            lower, upper = (
                self.builder.shuffle_vector(
                    vector,
                    ir.Constant(vector.type, ir.Undefined),
                    ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(i, i + width))),
                )
                for i in (0, width)
            )
            vector = self.builder.fadd(lower, upper)
        return self.builder.extract_element(vector, ir.IntType(32)(0))
