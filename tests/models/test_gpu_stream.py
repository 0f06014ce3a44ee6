"""The kernels that only a Hopper runs: interpreted anywhere, and on one against the reference."""

from itertools import product

import pytest
import torch
from gluon_interpreter import interpret
from on_gpu import DEVICE, close, random

from turbosparse.models.batch import FfnMode
from turbosparse.models.config import Activation
from turbosparse.models.kernels import gpu_stream, gpu_stream_ffn, gpu_stream_linear, reference
from turbosparse.models.kernels.gpu_epilogue import Epilogue

BF16 = torch.bfloat16


@pytest.fixture
def hopper():
    if not gpu_stream.runs_on(DEVICE):
        pytest.skip("needs a Hopper")


def on_hopper(test):
    return pytest.mark.gpu(pytest.mark.usefixtures("hopper")(test))


@pytest.fixture
def as_a_hopper(monkeypatch):
    monkeypatch.setattr(gpu_stream, "runs_on", lambda device: True)


@pytest.fixture(params=[True, False], ids=["late copies", "late products"])
def interpreted(request, monkeypatch, as_a_hopper):
    if DEVICE.type != "cpu":
        pytest.skip("runs on the GPU itself")
    interpret(monkeypatch, late_copies=request.param)
    monkeypatch.setattr(gpu_stream_ffn, "listed_and_normed", listed_and_normed)
    for module in (gpu_stream_linear, gpu_stream_ffn):
        monkeypatch.setattr(module, "multiprocessors", lambda device: 2)
    monkeypatch.setattr(gpu_stream_linear, "cut_for", gpu_stream_linear.cut_for.__wrapped__)


def listed_and_normed(mask, x, norm, eps):
    """`gpu_list.listed_and_normed` without Triton."""
    found = mask.any(0).nonzero().flatten().int()
    listed = torch.zeros(mask.shape[1], dtype=torch.int32)
    listed[: len(found)] = found
    count = torch.tensor([len(found)], dtype=torch.int32)
    return listed, count, x if norm is None else reference.rms_norm(x, norm, eps)


@pytest.mark.parametrize("num_rows", [1, 2, 70, 1280, 4096, 6144, 14336, 28672, 32003])
def test_all_rows_are_someones_and_fit_their_tiles(num_rows):
    cut = gpu_stream_linear.cut_for(num_rows, torch.device("cpu"))
    assert cut.share % 2 == cut.rows % 2 == 0
    assert cut.share * 132 >= num_rows
    assert cut.share <= cut.rows * cut.tiles
    assert cut.rows <= cut.block <= gpu_stream_linear.ROWS
    assert cut.block * cut.groups == gpu_stream.WARP_ROWS * cut.warps


def test_other_devices_have_other_kernels():
    x, weight = torch.zeros(4, 512, dtype=BF16), torch.zeros(64, 512, dtype=BF16)
    assert not gpu_stream_linear.fits(x, weight)
    assert not gpu_stream_ffn.fits(x, weight.view(-1, 1024), weight)


@pytest.mark.usefixtures("as_a_hopper")
def test_what_fits():
    def fits(num_tokens, width, stride=0, first=0, dtype=BF16):
        weight = torch.zeros(64, stride or width, dtype=dtype)[:, first : first + width]
        return gpu_stream_linear.fits(torch.zeros(num_tokens, width, dtype=dtype), weight)

    assert fits(1, 4096)
    assert fits(8, 4096)
    assert fits(4, 1536)
    assert fits(4, 2048)
    assert fits(4, 4096, dtype=torch.float16)
    assert fits(4, 4096, stride=8192)
    assert not fits(4, 4096, stride=4100), "rows that lie 8 bytes apart from 16"
    assert not fits(4, 4096, stride=8192, first=3)
    assert not fits(4, 4096, dtype=torch.float32)
    assert not fits(4, 4000)
    assert fits(2, 512)
    assert not fits(1, 512)
    assert not fits(4, 256)
    assert not fits(9, 4096)
    assert not fits(1, 16384)


def check_product(num_tokens, rows, width, apart=0, dtype=BF16):
    x, norm = random(num_tokens, width, dtype=dtype), random(width, seed=1, dtype=dtype)
    weight = (random(rows, width + apart, seed=2, dtype=dtype) / width**0.5)[:, :width]
    residual = random(num_tokens, rows, seed=3, dtype=dtype)
    assert gpu_stream_linear.fits(x, weight)

    def multiply(out, epilogue, threshold=0.0, norm=None, add=None, scale=1.0):
        arguments = (x, weight, out, epilogue, threshold, norm, 1e-5, add, scale)
        return gpu_stream_linear.multiply(*arguments)

    def empty(rows, dtype=dtype):
        return torch.empty(num_tokens, rows, dtype=dtype, device=DEVICE)

    sums = x.float() @ weight.float().T
    close(multiply(empty(rows), Epilogue.NONE), sums.to(dtype))
    close(multiply(empty(rows, torch.float32), Epilogue.NONE).to(dtype), sums.to(dtype))
    close(multiply(empty(rows), Epilogue.RELU), sums.relu().to(dtype))
    added = (residual.float() + 0.5 * sums).to(dtype)
    close(multiply(empty(rows), Epilogue.NONE, add=residual, scale=0.5), added)
    normed = reference.rms_norm(x, norm, 1e-5).float() @ weight.float().T
    close(multiply(empty(rows), Epilogue.NONE, norm=norm), normed.to(dtype))
    kept = multiply(empty(rows, torch.uint8), Epilogue.MASK, threshold=0.3).bool()
    assert (kept == (sums > 0.3))[(sums - 0.3).abs() > 1e-2].all()
    if rows % 2 == 0:
        gate, up = normed[:, ::2], normed[:, 1::2]
        want = (torch.nn.functional.silu(gate) * up).to(dtype)
        close(multiply(empty(rows // 2), Epilogue.GATED, norm=norm), want)


@on_hopper
@pytest.mark.parametrize("num_tokens", [1, 3, 4, 5, 8])
@pytest.mark.parametrize(
    ("rows", "width"),
    [(6144, 4096), (1280, 4096), (14336, 1280), (32003, 1024), (70, 2560), (2, 4096), (90, 2048)],
)
def test_products(num_tokens, rows, width):
    check_product(num_tokens, rows, width)


@on_hopper
@pytest.mark.parametrize(("rows", "width"), [(1536, 512), (333, 768), (3000, 512)])
def test_products_of_narrow_rows(rows, width):
    check_product(2, rows, width)
    check_product(8, rows, width)


@on_hopper
@pytest.mark.parametrize(("rows", "width"), [(4096, 4096), (90, 2048)])
def test_products_of_fp16(rows, width):
    check_product(1, rows, width, dtype=torch.float16)
    check_product(8, rows, width, dtype=torch.float16)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("num_tokens", [1, 3, 5, 8])
@pytest.mark.parametrize(
    ("rows", "width"),
    [(19, 1280), (6, 1280), (70, 1536), (200, 1024), (300, 1280), (64, 3072), (30, 2048)],
)
def test_products_interpreted(num_tokens, rows, width):
    check_product(num_tokens, rows, width, apart=8)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("rows", "width"), [(19, 512), (300, 768)])
def test_products_of_narrow_rows_interpreted(rows, width):
    check_product(2, rows, width)
    check_product(8, rows, width)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize(
    ("num_tokens", "hidden", "neurons"),
    [(1, 1024, 300), (4, 1280, 131), (5, 1024, 131), (8, 1280, 300)],
)
def test_ffn_interpreted(num_tokens, hidden, neurons, density, monkeypatch):
    for name, value in {"LISTED": 16, "SPLITS": 2, "STAGES": 3}.items():
        monkeypatch.setattr(gpu_stream_ffn, name, value)
    check_ffn(num_tokens, hidden, neurons, density)


@on_hopper
def test_products_of_rows_that_lie_apart():
    check_product(7, 4096, 4096, apart=4096)


def ffn_arguments(num_tokens, hidden, neurons, density, dtype):
    gate_up = random(neurons, 2 * hidden, seed=1, dtype=dtype) / hidden**0.5
    down = random(neurons, hidden, seed=2, dtype=dtype) / 9
    x = random(num_tokens, hidden, dtype=dtype)
    mask = torch.rand(num_tokens, neurons, generator=torch.Generator().manual_seed(3)) < density
    return x, gate_up, down, mask.to(DEVICE)


def check_ffn(num_tokens, hidden, neurons, density, activation=Activation.DRELU, dtype=BF16):
    x, gate_up, down, mask = ffn_arguments(num_tokens, hidden, neurons, density, dtype)
    assert gpu_stream_ffn.fits(x, gate_up, down)
    norm = random(hidden, seed=4, dtype=dtype)
    normed = reference.rms_norm(x, norm, 1e-5)
    weights = (gate_up, down, mask, activation, 0.0)
    got = gpu_stream_ffn.sparse(x, *weights, norm=norm, eps=1e-5, add=x, scale=0.7)
    want = reference.ffn(normed, *weights, FfnMode.DENSE)
    close(got, (x.float() + 0.7 * want.float()).to(dtype))
    plain = gpu_stream_ffn.sparse(x, *weights)
    close(plain, reference.ffn(x, *weights, FfnMode.DENSE))
    assert torch.equal(plain, gpu_stream_ffn.sparse(x, *weights))


@on_hopper
@pytest.mark.parametrize("num_tokens", [1, 2, 4, 5, 8])
@pytest.mark.parametrize("density", [0.0, 0.001, 0.1, 0.6, 1.0])
def test_ffn(num_tokens, density):
    check_ffn(num_tokens, 4096, 14336, density)


@on_hopper
def test_ffn_of_any_activation_and_size():
    activations = [a for a in Activation if a.is_sparse]
    sizes = [(512, 99), (1024, 99), (2048, 3001)]
    for activation, (hidden, neurons) in product(activations, sizes):
        check_ffn(3, hidden, neurons, 0.3, activation)
        check_ffn(6, hidden, neurons, 0.3, activation)


@on_hopper
def test_ffn_of_fp16():
    check_ffn(1, 4096, 14336, 0.1, dtype=torch.float16)
    check_ffn(8, 4096, 14336, 0.1, dtype=torch.float16)


@on_hopper
def test_one_program_takes_its_neurons_in_many_tiles(monkeypatch):
    monkeypatch.setattr(gpu_stream_ffn, "multiprocessors", lambda device: 1)
    check_ffn(4, 1024, 999, 0.5)
    check_ffn(8, 1024, 999, 0.5)
