"""The Triton kernels of products, predictors, FFNs and experts against the reference."""

from dataclasses import replace

import pytest
import torch
from on_gpu import DEVICE, close, gpu_only, random

from turbosparse.models.batch import FfnMode
from turbosparse.models.config import Activation
from turbosparse.models.kernels import (
    gpu,
    gpu_ffn_few,
    gpu_linear_one,
    gpu_norm,
    ops,
    reference,
    reference_predict,
)
from turbosparse.models.kernels.reference_predict import float8

SPARSE = [a for a in Activation if a.is_sparse]


def check_ffn(num_tokens, hidden, neurons, activation, mode, density, dtype=torch.float32):
    gate_up = random(neurons, 2 * hidden, seed=1, dtype=dtype) / hidden**0.5
    down = random(neurons, hidden, seed=2, dtype=dtype) / 9
    x = random(num_tokens, hidden, dtype=dtype)
    mask = torch.rand(num_tokens, neurons, generator=torch.Generator().manual_seed(3)) < density
    mask = mask.to(DEVICE)
    # no gate is exactly 0.25 here, and fp32 sums agree far better than gates are apart
    threshold = 0.25 if activation is Activation.FATRELU and dtype == torch.float32 else 0.0
    want = reference.ffn(x, gate_up, down, mask, activation, threshold, FfnMode.DENSE)
    close(gpu.ffn(x, gate_up, down, mask, activation, threshold, mode), want)


@pytest.mark.parametrize("mode", FfnMode)
@pytest.mark.parametrize(
    ("num_tokens", "hidden", "neurons"), [(1, 19, 99), (2, 19, 99), (3, 40, 131), (7, 64, 99)]
)
def test_ffn(num_tokens, hidden, neurons, mode):
    for activation in SPARSE:
        check_ffn(num_tokens, hidden, neurons, activation, mode, 0.2)


def test_more_listed_neurons_than_fit_the_programs_at_once(monkeypatch):
    monkeypatch.setattr(gpu_ffn_few, "multiprocessors", lambda device: 1)
    check_ffn(3, 32, 300, Activation.DRELU, FfnMode.TOKEN, 0.7)


def test_token_and_union_are_one_path_and_one_to_measure():
    chosen, _ = ops.select(torch.device("cpu"), torch.float32)
    assert chosen.modes == tuple(FfnMode)
    assert replace(chosen, ffn=gpu.ffn).modes == (FfnMode.UNION, FfnMode.DENSE)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_ffn_of_no_neuron_and_of_all(density):
    check_ffn(2, 32, 99, Activation.DRELU, FfnMode.TOKEN, density)


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 6, 70])
def test_predict(num_tokens):
    residual, fc1, fc2 = random(num_tokens, 99), random(19, 99, seed=1), random(131, 19, seed=2)
    want = reference.predict(residual, fc1, fc2, 0.3)
    scores = (residual @ fc1.T).relu() @ fc2.T
    clear = (scores - 0.3).abs() > 1e-3  # near the threshold rounding may decide
    got = gpu.predict(residual, fc1, fc2, 0.3)
    assert got.dtype == torch.bool
    assert (got == want)[clear].all()
    assert clear.float().mean() > 0.98


@pytest.mark.parametrize("num_tokens", [1, 3, 70])
@pytest.mark.parametrize(("rank", "width"), [(19, 99), (16, 64)])
def test_predict_in_8_bits(num_tokens, rank, width):
    """Weights whose rows are of very different sizes: a scale at the wrong row would show."""
    residual, fc1, scale1 = random(num_tokens, width), *float8(random(rank, width, seed=1))
    fc2, scale2 = float8(random(131, rank, seed=2))
    scale1, scale2 = (scale * random(len(scale), seed=3).exp() for scale in (scale1, scale2))
    arguments = (residual, fc1, fc2, 0.3, (scale1, scale2))
    scores = reference_predict.low_rank_scores(residual, fc1, fc2, (scale1, scale2))
    clear = (scores - 0.3).abs() > 1e-3
    assert (gpu.predict(*arguments) == reference.predict(*arguments))[clear].all()
    assert clear.float().mean() > 0.98


def test_norm():
    x, weight = random(3, 99), random(99, seed=2)
    close(gpu.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))


def check_products(num_tokens, width, rows, dtype=torch.float32):
    x, norm = random(num_tokens, width, dtype=dtype), random(width, seed=1, dtype=dtype)
    weight = random(rows, width, seed=2, dtype=dtype) / width**0.5
    residual = random(num_tokens, rows, seed=3, dtype=dtype)
    close(gpu.linear(x, weight), reference.linear(x, weight))
    close(gpu.norm_linear(x, norm, 1e-5, weight), reference.norm_linear(x, norm, 1e-5, weight))
    want = reference.linear_add(x, weight, residual, 0.5)
    close(gpu.linear_add(x, weight, residual, 0.5), want)
    pairs = weight[: rows // 2 * 2].view(-1, 2 * width)
    for activation in (Activation.SILU, Activation.RELU):
        want = reference.norm_gated(x, norm, 1e-5, pairs, activation)
        close(gpu.norm_gated(x, norm, 1e-5, pairs, activation), want)


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 20])
@pytest.mark.parametrize(("width", "rows"), [(99, 19), (192, 70), (4100, 6)])
def test_products(num_tokens, width, rows):
    check_products(num_tokens, width, rows)


@pytest.mark.parametrize("num_tokens", [1, 2])
def test_products_whose_rows_come_in_many_tiles(num_tokens, monkeypatch):
    monkeypatch.setattr(gpu_linear_one, "multiprocessors", lambda device: 1)
    check_products(num_tokens, 192, 70)


def check_ffn_add(num_tokens, hidden, neurons, mode, masked, dtype=torch.float32):
    gate_up = random(neurons, 2 * hidden, seed=1, dtype=dtype) / hidden**0.5
    down = random(neurons, hidden, seed=2, dtype=dtype) / 9
    residual, norm = random(num_tokens, hidden, dtype=dtype), random(hidden, seed=4, dtype=dtype)
    kept = torch.rand(num_tokens, neurons, generator=torch.Generator().manual_seed(3)) < 0.2
    mask = kept.to(DEVICE) if masked else None
    arguments = (gate_up, down, lambda: mask, Activation.DRELU, 0.0, mode, 0.7)
    want = reference.ffn_add(residual, norm, 1e-5, *arguments)
    close(gpu.ffn_add(residual, norm, 1e-5, *arguments), want)


@gpu_only
def test_what_is_kept_is_found_aside_within_a_graph():
    residual, norm = random(100, 64), random(64, seed=4)
    gate_up, down = random(300, 128, seed=1) / 8, random(300, 64, seed=2) / 9
    fc = random(300, 64, seed=3)
    rest = (Activation.DRELU, 0.0, FfnMode.DENSE, 0.7)

    def run(backend):
        weights = (gate_up, down, lambda: residual @ fc.T > 0)
        return backend.ffn_add(residual, norm, 1e-5, *weights, *rest)

    run(gpu)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run(gpu)
    for seed in (7, 8):
        residual.copy_(random(100, 64, seed=seed))
        graph.replay()
        close(got, run(reference))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 70])
@pytest.mark.parametrize("mode", [FfnMode.UNION, FfnMode.DENSE])
def test_the_ffn_between_norm_and_residual(num_tokens, mode, masked):
    check_ffn_add(num_tokens, 48, 99, mode, masked)


def check_experts(
    num_tokens, hidden, neurons, rank, mode, dtype=torch.float32, num_experts=4, rounded=False
):
    x, residual = (random(num_tokens, hidden, seed=i, dtype=dtype) for i in (0, 7))
    router = random(num_experts, hidden, seed=1, dtype=dtype)
    fc1 = random(num_experts * rank, hidden, seed=2, dtype=dtype) / hidden**0.5
    fc2 = random(num_experts * neurons, rank, seed=3, dtype=dtype) / rank**0.5
    gate_up = random(num_experts * neurons, 2 * hidden, seed=4, dtype=dtype) / hidden**0.5
    down = random(num_experts * neurons, hidden, seed=5, dtype=dtype) / 9
    want = reference.route(x, router, 2)
    routing = gpu.route(x, router, 2)
    torch.testing.assert_close(routing.weights, want.weights, atol=1e-5, rtol=1e-4)
    norm = random(hidden, seed=6, dtype=dtype)
    normed, want = reference.norm_route(residual, norm, 1e-5, router, 2)
    found, chosen = gpu.norm_route(residual, norm, 1e-5, router, 2)
    close(found, normed)
    torch.testing.assert_close(chosen.weights, want.weights, atol=5e-3, rtol=5e-2)
    scales = None
    if rounded:
        (fc1, scale1), (fc2, scale2) = float8(fc1), float8(fc2)
        scales = (scale1, scale2)
    scores = reference.predict_experts(residual, fc1, fc2, 0.2, routing, scales)
    found = gpu.predict_experts(residual, fc1, fc2, 0.2, routing, scales)
    sent = (routing.weights != 0).repeat_interleave(neurons, 1)
    assert (scores == found)[sent].float().mean() > 0.995, "near the threshold rounding may decide"
    mask = scores.where(sent, True)  # what an expert's mask says of others must not matter
    arguments = (mask, Activation.DRELU, 0.0, mode, routing)
    want = reference.experts(x, residual, 0.5, gate_up, down, *arguments)
    close(gpu.experts(x, residual, 0.5, gate_up, down, *arguments), want)


def test_a_router_that_no_program_holds_whole(monkeypatch):
    monkeypatch.setattr(gpu_norm, "ROUTER", 0)
    residual, norm = random(2, 1100), random(1100, seed=1)
    router = random(5, 1100, seed=2) / 33
    x, routing = gpu.norm_route(residual, norm, 1e-5, router, 2)
    normed, want = reference.norm_route(residual, norm, 1e-5, router, 2)
    close(x, normed)
    assert (routing.chosen == want.chosen).all()
    close(routing.weights, want.weights)


@pytest.mark.parametrize("num_tokens", [1, 3])
@pytest.mark.parametrize("mode", [FfnMode.TOKEN, FfnMode.DENSE])
def test_experts(num_tokens, mode):
    check_experts(num_tokens, 32, 48, 16, mode)


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_experts_whose_predictors_are_in_8_bits(num_tokens):
    check_experts(num_tokens, 32, 48, 16, FfnMode.TOKEN, rounded=True)


@gpu_only
@pytest.mark.parametrize("num_tokens", [1, 2, 4, 5, 16, 33, 64, 100])
@pytest.mark.parametrize("mode", FfnMode)
def test_ffn_at_7b(num_tokens, mode):
    check_ffn(num_tokens, 4096, 14336, Activation.DRELU, mode, 0.1, torch.bfloat16)


@gpu_only
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 16, 17, 64, 300])
@pytest.mark.parametrize("rank", [1260, 1280])
def test_predict_at_7b(num_tokens, rank):
    dtype = torch.bfloat16
    residual = random(num_tokens, 4096, dtype=dtype)
    fc1 = random(rank, 4096, seed=1, dtype=dtype) / 64
    fc2 = random(14336, rank, seed=2, dtype=dtype)
    hidden = (residual.double() @ fc1.double().T).relu().bfloat16().double()
    scores = hidden @ fc2.double().T
    clear = scores.abs() > 1e-2 * scores.abs().mean()  # the hidden layer's last bit may differ
    assert (gpu.predict(residual, fc1, fc2, 0.0) == (scores > 0))[clear].all()
    assert clear.float().mean() > 0.98


@gpu_only
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 16, 17, 64, 300])
@pytest.mark.parametrize("rank", [1260, 1280])
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_predict_in_8_bits_at_7b(num_tokens, rank, threshold):
    residual = random(num_tokens, 4096, dtype=torch.bfloat16)
    fc1, scale1 = float8(random(rank, 4096, seed=1) / 64)
    fc2, scale2 = float8(random(14336, rank, seed=2))
    hidden = (residual.double() @ fc1.double().T * scale1.double()).relu().bfloat16().double()
    scores = hidden @ fc2.double().T * scale2.double()
    clear = (scores - threshold).abs() > 1e-2 * scores.abs().mean()
    found = gpu.predict(residual, fc1, fc2, threshold, (scale1, scale2))
    assert (found == (scores > threshold))[clear].all()
    assert clear.float().mean() > 0.98


@gpu_only
@pytest.mark.parametrize("num_tokens", [1, 2, 16, 17])
@pytest.mark.parametrize(
    ("width", "rows"), [(4096, 6144), (14336, 4096), (11008, 4096), (1280, 14336)]
)
def test_products_at_7b(num_tokens, width, rows):
    check_products(num_tokens, width, rows, torch.bfloat16)


@gpu_only
@pytest.mark.parametrize("num_tokens", [1, 2, 40, 100])
@pytest.mark.parametrize("mode", [FfnMode.UNION, FfnMode.DENSE])
def test_the_ffn_between_norm_and_residual_at_7b(num_tokens, mode):
    for masked in (True, False):
        check_ffn_add(num_tokens, 4096, 14336, mode, masked, torch.bfloat16)


@gpu_only
@pytest.mark.parametrize("num_tokens", [1, 2, 33, 200])
@pytest.mark.parametrize("mode", [FfnMode.TOKEN, FfnMode.DENSE])
def test_experts_at_7b(num_tokens, mode):
    check_experts(num_tokens, 4096, 3584, 1024, mode, torch.bfloat16, num_experts=8)


@gpu_only
@pytest.mark.parametrize("num_tokens", [1, 2, 33, 200])
def test_experts_whose_predictors_are_in_8_bits_at_7b(num_tokens):
    sizes = (num_tokens, 4096, 3584, 1024)
    check_experts(*sizes, FfnMode.TOKEN, torch.bfloat16, num_experts=8, rounded=True)
