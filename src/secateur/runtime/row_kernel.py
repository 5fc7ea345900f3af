"""The innermost loops of the compiled kernels as LLVM instructions."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def row_kernel(width: int) -> Any:
    """Return the inner loop of ``_run_rows`` over ``width`` columns, as LLVM instructions.

    Numba's own loops keep neither the sums in registers nor the columns in vectors: this is a third of
    the time of the best of them.
    """

    single, integer, byte = ir.FloatType(), ir.IntType(64), ir.IntType(8)
    vector = ir.VectorType(single, width)
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
    contract = ["contract"]

    def splat(builder: Any, scalar: Any) -> Any:
        undefined = ir.Constant(vector, ir.Undefined)
        first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, undefined, everywhere)

    def load(builder: Any, address: Any, kind: Any, align: int) -> Any:
        return builder.load(builder.inttoptr(address, kind.as_pointer()), align=align)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values, addresses, start, stop, source, target, bias, residual, mask, low, high = args
        value_at = builder.inttoptr(values, single.as_pointer())
        address_at = builder.inttoptr(addresses, ir.IntType(32).as_pointer())
        source_at = builder.inttoptr(source, single.as_pointer())
        begin, before = splat(builder, bias), builder.block
        head, body, end = (builder.append_basic_block(name) for name in ("head", "body", "end"))
        builder.branch(head)
        builder.position_at_end(head)
        p, total = builder.phi(integer), builder.phi(vector)
        p.add_incoming(start, before)
        total.add_incoming(begin, before)
        builder.cbranch(builder.icmp_signed("<", p, stop), body, end)
        builder.position_at_end(body)
        weight = splat(builder, builder.load(builder.gep(value_at, [p])))
        address = builder.zext(builder.load(builder.gep(address_at, [p])), integer)
        column = builder.bitcast(builder.gep(source_at, [address]), vector.as_pointer())
        product = builder.fmul(weight, builder.load(column, align=4), flags=contract)
        p.add_incoming(builder.add(p, ir.Constant(integer, 1)), body)
        total.add_incoming(builder.fadd(total, product, flags=contract), body)
        builder.branch(head)
        builder.position_at_end(end)

        slot = cgutils.alloca_once_value(builder, total)
        zero = ir.Constant(integer, 0)
        with builder.if_then(builder.icmp_unsigned("!=", residual, zero)):
            builder.store(builder.fadd(builder.load(slot), load(builder, residual, vector, 4)), slot)
        total = builder.load(slot)
        least, most = splat(builder, low), splat(builder, high)
        total = builder.select(builder.fcmp_ordered("<", total, least), least, total)  # a NaN stays one
        total = builder.select(builder.fcmp_ordered(">", total, most), most, total)
        builder.store(total, slot)
        with builder.if_then(builder.icmp_unsigned("!=", mask, zero)):
            bytes_ = load(builder, mask, ir.VectorType(byte, width), 1)
            inside = builder.icmp_unsigned("!=", bytes_, ir.Constant(ir.VectorType(byte, width), [0] * width))
            nothing = ir.Constant(vector, [0.0] * width)
            builder.store(builder.select(inside, builder.load(slot), nothing), slot)
        builder.store(builder.load(slot), builder.inttoptr(target, vector.as_pointer()), align=4)
        return context.get_dummy_value()

    at, count, number = types.uintp, types.int64, types.float32
    signature = types.void(at, at, count, count, at, at, number, at, at, number, number)

    @intrinsic
    def row(context, values, addresses, start, stop, source, target, bias, residual, mask, low, high):  # type: ignore[no-untyped-def]
        return signature, codegen

    return row


def transpose_kernel() -> Any:
    """Return a function that transposes a block of 16 x 16 floats in registers: (source, bytes from row to
    row there, target, bytes from row to row there).

    Four times each register of the first half is interleaved with one of the second.
    """

    size = 16
    vector, index = ir.VectorType(ir.FloatType(), size), ir.VectorType(ir.IntType(32), size)
    integer = ir.IntType(64)
    woven = [i // 2 + i % 2 * size for i in range(size)]
    halves = [ir.Constant(index, [i + start for i in woven]) for start in (0, size // 2)]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, down, target, up = args

        def row(start: Any, step: Any, number: int) -> Any:
            at = builder.add(start, builder.mul(step, ir.Constant(integer, number)))
            return builder.inttoptr(at, vector.as_pointer())

        rows = [builder.load(row(source, down, i), align=4) for i in range(size)]
        for _ in range(4):
            pairs = zip(rows[: size // 2], rows[size // 2 :], strict=True)
            rows = [builder.shuffle_vector(a, b, half) for a, b in pairs for half in halves]
        for i, values in enumerate(rows):
            builder.store(values, row(target, up, i), align=4)
        return context.get_dummy_value()

    signature = types.void(types.uintp, types.int64, types.uintp, types.int64)

    @intrinsic
    def transpose(context, source, down, target, up):  # type: ignore[no-untyped-def]
        return signature, codegen

    return transpose


def column_kernel(unroll: int = 4) -> Any:
    """Return the inner loop of ``_run_vector``: a number times a sparse column, added to a vector.

    Its arguments: the addresses of the column's values and of their rows, each as the gap to the one before
    in a byte; how many; the number; the address of the vector. As the rows differ, several are read before
    the first is written.
    """

    single, integer, byte = ir.FloatType(), ir.IntType(64), ir.IntType(8)
    contract = ["contract"]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values, gaps, count, x, out = args
        value_at, gap_at, out_at = (
            builder.inttoptr(at, kind.as_pointer())
            for at, kind in ((values, single), (gaps, byte), (out, single))
        )
        loops, zero = (unroll, 1), ir.Constant(integer, 0)
        p, row, before = zero, zero, builder.block
        for at_once in loops:
            head, body, end = (builder.append_basic_block(name) for name in ("head", "body", "end"))
            builder.branch(head)
            builder.position_at_end(head)
            here, last = builder.phi(integer), builder.phi(integer)
            here.add_incoming(p, before)
            last.add_incoming(row, before)
            after = builder.add(here, ir.Constant(integer, at_once))
            builder.cbranch(builder.icmp_signed("<=", after, count), body, end)
            builder.position_at_end(body)
            places, products, at = [], [], last
            for k in range(at_once):
                index = builder.add(here, ir.Constant(integer, k))
                at = builder.add(at, builder.zext(builder.load(builder.gep(gap_at, [index])), integer))
                places.append(builder.gep(out_at, [at]))
                weight = builder.load(builder.gep(value_at, [index]))
                products.append(builder.fmul(weight, x, flags=contract))
            pairs = zip(places, products, strict=True)
            sums = [builder.fadd(builder.load(place), product, flags=contract) for place, product in pairs]
            for place, total in zip(places, sums, strict=True):
                builder.store(total, place)
            here.add_incoming(after, body)
            last.add_incoming(at, body)
            builder.branch(head)
            builder.position_at_end(end)
            p, row, before = here, last, end
        return context.get_dummy_value()

    at, count, number = types.uintp, types.int64, types.float32
    signature = types.void(at, at, count, number, at)

    @intrinsic
    def column(context, values, gaps, count, x, out):  # type: ignore[no-untyped-def]
        return signature, codegen

    return column
