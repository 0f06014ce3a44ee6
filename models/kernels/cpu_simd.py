"""What numba cannot say: sums of products in vector lanes, in an order that is ours.

A dot product here is 16 running sums, lane l adding up the elements l, l + 16, l + 32 ..., folded
in halves at the end. Whatever tile it is computed in, its bits are the same: no kernel here lets
the compiler reorder a sum. The ops below check no index.
"""
# pyright: basic, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16  # floats: one AVX-512 register, two AVX2 ones, four of NEON
WIDE_REGISTERS = bool(binding.get_host_cpu_features().get("avx512f"))
VECTOR = ir.VectorType(ir.FloatType(), LANES)
NOTHING = ir.Constant(VECTOR, [0.0] * LANES)
WORDS = ir.VectorType(ir.IntType(32), LANES)
INT, BYTES = ir.IntType(64), ir.IntType(8).as_pointer()


@intrinsic
def dot(typing: Any, a: Any, i: Any, b: Any, j: Any) -> Any:
    """a[i] . b[j]; both C-contiguous [.., K] float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = _Emitter(context, builder, signature.args, args)
        a, b = emit.array(0), emit.array(2)
        left, right = emit.row(a, emit.index(1)), emit.row(b, emit.index(3))
        return emit.products([left], [right], a.length)[0]

    return types.float32(a, i, b, j), generate


def tile(num_left: int, num_right: int) -> Any:
    """An op: `op(out, shift, a, places, i, b, j, stop, ahead)` for p = i .. and r = j .. writes
    out[p, r - shift] = a[places[p]] . b[r], num_left by num_right of them at most.

    a, b [.., K] and out are C-contiguous float32; `places` is an array of indices, or None for p
    itself. p ends where `places` or else `out` ends, r at `stop`. Meanwhile the rows of b from
    `ahead` on are asked for: the hardware foresees one stream of memory, neither several of them
    nor a list of neurons.
    """

    @intrinsic
    def dots(
        typing: Any,
        out: Any,
        shift: Any,
        a: Any,
        places: Any,
        i: Any,
        b: Any,
        j: Any,
        stop: Any,
        ahead: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> None:
            emit = _Emitter(context, builder, signature.args, args)
            out, a, b = emit.array(0), emit.array(2), emit.array(5)
            shift, i, j, stop, ahead = (emit.index(n) for n in (1, 4, 6, 7, 8))
            if places == types.none:
                ps = rows = emit.count(i, num_left, out.num_rows)
            else:
                listed = emit.array(3)
                ps = emit.count(i, num_left, listed.length)
                rows = [emit.item(listed, p) for p in ps]
            rs = emit.count(j, num_right, stop)
            upcoming = [emit.row(b, builder.add(ahead, INT(n))) for n in range(num_right)]
            lefts, rights = ([emit.row(x, r) for r in y] for x, y in ((a, rows), (b, rs)))
            sums = emit.products(lefts, rights, a.length, upcoming)
            for (p, r), value in zip(product(ps, rs), sums, strict=True):
                emit.put(value, out, p, builder.sub(r, shift))

        return types.void(out, shift, a, places, i, b, j, stop, ahead), generate

    return dots


@intrinsic
def ask_for(typing: Any, a: Any, i: Any) -> Any:
    """Have the row a[i] fetched while other work goes on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> None:
        emit = _Emitter(context, builder, signature.args, args)
        a = emit.array(0)
        row = emit.row(a, emit.index(1))
        steps = cgutils.for_range_slice(builder, INT(0), a.length, INT(LANES), intp=INT)
        with steps as (k, _):
            emit.prefetch(row, k)

    return types.void(a, i), generate


def row_sum(num_rows: int) -> Any:
    """An op: `op(total, weights, table, rows, low)` adds weights[i] * table[rows[i], low + k] to
    total[k] for every k, one row after the other.

    total is [n], table [.., K], both C-contiguous float32; weights and rows are tuples.
    """

    @intrinsic
    def add_rows(typing: Any, total: Any, weights: Any, table: Any, rows: Any, low: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> None:
            emit = _Emitter(context, builder, signature.args, args)
            total, table, low = emit.array(0), emit.array(2), emit.index(4)
            parts = [
                (emit.spread(emit.member(1, n)), emit.row(table, emit.member(3, n), low))
                for n in range(num_rows)
            ]

            def add(k: Any, mask: Any) -> None:
                value = emit.load(total.data, k, mask)
                for weight, row in parts:
                    value = emit.fma(weight, emit.load(row, k, mask), value)
                emit.store(value, total.data, k, mask)

            emit.over(total.length, add)

        return types.void(total, weights, table, rows, low), generate

    return add_rows


def unpacking(bits: int) -> Any:
    """An op: `op(words, units, out)` writes the row that words [bits, W] int32 and units [W] stand
    for to out [32 * W], as `reference.unpack` has them; all C-contiguous.

    numba would do it in 64 bits, and not in vectors.
    """
    per_word, ones = 32 // bits, (1 << bits) - 1

    def number(emit: Any, words: list[Any], slot: int) -> Any:
        builder = emit.builder

        def part(word: Any, shift: int, ones: int) -> Any:
            shifted = builder.lshr(word, ir.Constant(WORDS, [shift] * LANES))
            return builder.and_(shifted, ir.Constant(WORDS, [ones] * LANES))

        if slot < bits * per_word:
            return part(words[slot // per_word], slot % per_word * bits, ones)
        high = builder.shl(part(words[1], slot, 1), ir.Constant(WORDS, [2] * LANES))
        return builder.or_(part(words[2 * slot - 60], 30, 3), high)

    @intrinsic
    def unpack(typing: Any, words: Any, units: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> None:
            emit = _Emitter(context, builder, signature.args, args)
            words, units, out = (emit.array(n) for n in range(3))
            middle = ir.Constant(VECTOR, [ones / 2] * LANES)
            rows = [
                emit.row(out, INT(0), builder.mul(INT(slot), words.length)) for slot in range(32)
            ]
            sources = [emit.row(words, INT(p)) for p in range(bits)]

            def spread(k: Any, mask: Any) -> None:
                found = [builder.bitcast(emit.load(row, k, mask), WORDS) for row in sources]
                unit = emit.load(units.data, k, mask)
                for slot, row in enumerate(rows):
                    value = builder.sitofp(number(emit, found, slot), VECTOR)
                    value = builder.fmul(builder.fsub(value, middle), unit)
                    emit.store(value, row, k, mask)

            emit.over(words.length, spread)

        return types.void(words, units, out), generate

    return unpack


@njit
def exp(x):
    """e ** x to one part in 10 million, without a branch, so that a loop over it becomes vectors.

    x = n ln 2 + r; e ** r by the polynomial of Cephes' expf, 2 ** n by writing the exponent's bits.
    Less than e ** -87 is 0, more than e ** 88 is that.
    """
    scale = np.float32(1) if x >= np.float32(-87) else np.float32(0)
    x = min(max(x, np.float32(-87)), np.float32(88))
    n = np.floor(x * np.float32(1.442695041) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    power = (np.int32(n) + np.int32(127)) << np.int32(23)
    scale *= np.int32(power).view(np.float32)
    return (p * r * r + r + np.float32(1)) * scale


@njit(fastmath={"nnan", "nsz"})  # or it is not vectorised; a maximum has no order
def largest(values):
    found = values[0]
    for i in range(len(values)):
        found = max(found, values[i])
    return found


class _Array(NamedTuple):
    """An array argument as LLVM sees it; `length` is the last dimension's."""

    data: Any
    row_bytes: Any
    num_rows: Any
    length: Any


class _Emitter:
    """Writes LLVM instructions for one op, whose arguments it knows by number."""

    def __init__(self, context: Any, builder: Any, arg_types: Any, args: Any) -> None:
        self.context, self.builder, self.types, self.args = context, builder, arg_types, args

    def array(self, number: int) -> _Array:
        array = self.context.make_array(self.types[number])(
            self.context, self.builder, self.args[number]
        )
        shape = cgutils.unpack_tuple(self.builder, array.shape)
        data = self.builder.bitcast(array.data, BYTES)
        return _Array(data, self.builder.mul(shape[-1], INT(4)), shape[0], shape[-1])

    def index(self, number: int) -> Any:
        return self.context.cast(self.builder, self.args[number], self.types[number], types.intp)

    def member(self, number: int, place: int) -> Any:
        """One value of a tuple, integers as indices."""
        value, type_ = self.builder.extract_value(self.args[number], place), self.types[number]
        integer = isinstance(type_[place], types.Integer)
        return self.context.cast(
            self.builder, value, type_[place], types.intp if integer else types.float32
        )

    def count(self, start: Any, num: int, stop: Any) -> list[Any]:
        """start, start + 1 ... and stop - 1 again and again once it is reached."""
        last = self.builder.sub(stop, INT(1))
        numbers = [self.builder.add(start, INT(n)) for n in range(num)]
        return [
            self.builder.select(self.builder.icmp_signed("<", n, last), n, last) for n in numbers
        ]

    def row(self, array: _Array, index: Any, low: Any = None) -> Any:
        """Where a row begins, or `low` floats into it."""
        row = self._at(array.data, self.builder.mul(index, array.row_bytes))
        return row if low is None else self._at(row, self._bytes(low))

    def item(self, array: _Array, place: Any) -> Any:
        """One number of an array of int64."""
        address = self._at(array.data, self.builder.mul(place, INT(8)))
        return self.builder.load(self.builder.bitcast(address, INT.as_pointer()))

    def put(self, value: Any, array: _Array, row: Any, column: Any) -> None:
        address = self.row(array, row, column)
        self.builder.store(value, self.builder.bitcast(address, value.type.as_pointer()))

    def products(
        self, lefts: list[Any], rights: list[Any], length: Any, upcoming: list[Any] | None = None
    ) -> list[Any]:
        """The dot product of every left row with every right one, right ones running fastest."""
        totals = [self.zeros() for _ in product(lefts, rights)]

        def add(k: Any, mask: Any) -> None:
            for row in upcoming or [] if mask is None else []:
                self.prefetch(row, k)
            xs, ys = ([self.load(row, k, mask) for row in rows] for rows in (lefts, rights))
            for total, (x, y) in zip(totals, product(xs, ys), strict=True):
                self.builder.store(self.fma(x, y, self.builder.load(total)), total)

        self.over(length, add)
        return self.fold([self.builder.load(total) for total in totals])

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
            if len(vectors) % 2 and len(vectors) > 1:
                vectors.append(vectors[-1])
            pairs = list(zip(vectors[::2], vectors[1::2], strict=False)) or [(vectors[0],) * 2]
            width = 2 * LANES if len(vectors) > 1 else vectors[0].type.count
            lower = [lane for lane in range(width) if lane % group < group // 2]
            upper = [lane + group // 2 for lane in lower]
            vectors = [
                self.builder.fadd(self._pick(a, b, lower), self._pick(a, b, upper))
                for a, b in pairs
            ]
            group //= 2
        lanes = [(v, lane) for v in vectors for lane in range(v.type.count)]
        return [
            self.builder.extract_element(v, ir.IntType(32)(lane)) for v, lane in lanes[:num_sums]
        ]

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
