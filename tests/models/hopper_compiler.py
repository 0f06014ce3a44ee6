"""Compiles kernels for a Hopper, on any machine with Triton, as they are launched for a 7B's shapes
and for small ones: `python hopper_compiler.py` writes a line of JSON for each."""

import json
import sys
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from turbosparse.models.batch import Routing
from turbosparse.models.config import Activation
from turbosparse.models.kernels import (
    gpu_best,
    gpu_experts,
    gpu_pairs,
    gpu_sketch,
    gpu_stream_ffn,
    gpu_stream_linear,
)
from turbosparse.models.kernels.gpu_epilogue import Epilogue

POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}
ALIGNED = [["tt.divisibility", 16]]


class Compiled:
    """A kernel that is compiled where it would be launched."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.compile

    def compile(self, *arguments: object, num_warps: int = 4, **constants: object) -> None:
        names = self.kernel.arg_names
        constants |= {"PDL": True} if "PDL" in names else {}
        values = dict(zip(names, arguments, strict=False)) | constants
        types, known, attributes = {}, {}, {}
        for i, (name, parameter) in enumerate(zip(names, self.kernel.params, strict=True)):
            value, is_special = values[name], not parameter.do_not_specialize
            is_one = type(value) is int and value == 1 and is_special
            if name in constants or value is None or is_one:
                types[name], known[(i,)] = "constexpr", value
            elif isinstance(value, Tensor):
                types[name], attributes[(i,)] = POINTERS[value.dtype], ALIGNED
            elif isinstance(value, TensorDescriptor):
                kind = POINTERS[value.base.dtype][1:]
                types[name] = f"tensordesc<{kind}{list(value.block_shape)}>"
            elif isinstance(value, int):
                types[name] = "i32"
                if value % 16 == 0 and is_special:
                    attributes[(i,)] = ALIGNED
            else:
                types[name] = "fp32"
        source = GluonASTSource if isinstance(self.kernel, GluonJITFunction) else ASTSource
        binary = triton.compile(
            source(self.kernel, types, known, attributes),
            target=GPUTarget("cuda", 90, 32),
            options={"num_warps": num_warps, "launch_pdl": True},
        )
        shared = binary.metadata.shared
        products = binary.asm["ptx"].count("mma.")
        sys.stdout.write(json.dumps([self.kernel.__name__, shared, products]) + "\n")


def empty(*size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*size, dtype=dtype)


def product(num_tokens: int, rows: int, width: int, epilogue: Epilogue, *, norm: bool) -> None:
    dtype = torch.uint8 if epilogue is Epilogue.MASK else torch.bfloat16
    out = empty(num_tokens, rows, dtype=dtype)
    x, weight = empty(num_tokens, width), empty(rows, width)
    add = None if norm or epilogue is not Epilogue.NONE else out
    scale = empty(width) if norm else None
    gpu_stream_linear.multiply(x, weight, out, epilogue, 0.0, scale, 1e-5, add, 1.0)


def ffn(num_tokens: int, hidden: int, neurons: int) -> None:
    gpu_stream_ffn.sparse(
        empty(num_tokens, hidden),
        empty(neurons, 2 * hidden),
        empty(neurons, hidden),
        empty(num_tokens, neurons, dtype=torch.bool),
        Activation.DRELU,
        0.0,
    )


def sketch(num_tokens: int, bits: int) -> None:
    codes = empty(14336, 2, bits, 4096 // 32, dtype=torch.int32)
    scales = empty(14336, 2, 4096 // 64, dtype=torch.float16)
    gpu_sketch.sketch(empty(num_tokens, 4096), codes, scales, 0.0)


def experts(num_tokens: int) -> None:
    """A predictor's two products and an FFN's, of Mixtral's shape."""
    chosen = empty(num_tokens, 2, dtype=torch.int64)
    routing = Routing(empty(num_tokens, 8, dtype=torch.float32), chosen)
    x, mask = empty(num_tokens, 4096), empty(num_tokens, 8 * 14336, dtype=torch.bool)
    gpu_experts.predict(x, empty(8 * 1088, 4096), empty(8 * 14336, 1088), 0.0, routing)
    gate_up, down = empty(8 * 14336, 2 * 4096), empty(8 * 14336, 4096)
    gpu_experts.ffn(x, x, 1.0, gate_up, down, mask, Activation.DRELU, 0.0, routing)


if __name__ == "__main__":
    gpu_experts.describes = lambda device: True
    for module, name in (
        (gpu_pairs, "sort_kernel"),
        (gpu_pairs, "add_kernel"),
        (gpu_experts, "product_kernel"),
        (gpu_best, "best_kernel"),
        (gpu_sketch, "one_kernel"),
        (gpu_sketch, "few_kernel"),
        (gpu_stream_linear, "product_kernel"),
        (gpu_stream_ffn, "values_kernel"),
        (gpu_stream_ffn, "down_kernel"),
    ):
        setattr(module, name, Compiled(getattr(module, name)))
    listed = empty(14336, dtype=torch.int32), empty(1, dtype=torch.int32)
    gpu_stream_ffn.listed_and_normed = lambda mask, x, norm, eps: (*listed, x)  # pyright: ignore
    product(4, 6144, 4096, Epilogue.NONE, norm=True)
    product(8, 28672, 4096, Epilogue.GATED, norm=True)
    product(1, 4096, 4096, Epilogue.NONE, norm=False)
    product(8, 14336, 1280, Epilogue.MASK, norm=False)
    product(3, 70, 1536, Epilogue.RELU, norm=False)
    product(4, 2048, 2048, Epilogue.NONE, norm=False)
    ffn(1, 4096, 14336)
    ffn(8, 1024, 99)
    sketch(1, 4)
    sketch(2, 3)
    sketch(64, 4)
    experts(256)
    gpu_best.most_likely(empty(3, 32000, dtype=torch.float32))
