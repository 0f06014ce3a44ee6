"""The Triton kernels of all experts' neurons against the reference: pairs, and their products."""

import pytest
import torch
from on_gpu import DEVICE, close, gpu_only, random

from turbosparse.models.batch import FfnMode, Routing
from turbosparse.models.config import Activation
from turbosparse.models.kernels import gpu_experts, gpu_pairs, reference, reference_predict
from turbosparse.models.kernels.reference_predict import float8

DRELU, RELU, SILU = Activation.DRELU, Activation.RELU, Activation.SILU
HALF = torch.bfloat16


def routed(num_tokens: int, num_experts: int, num_chosen: int = 2) -> Routing:
    """Nobody is sent to the last expert but one."""
    logits = random(num_tokens, num_experts, seed=9) * 3
    logits[:, -2] = -100
    return reference.best_of(logits, num_chosen)


@pytest.fixture(params=[False, True], ids=["addressed", "described"])
def described(request, monkeypatch):
    """Weights by their addresses, and by descriptors."""
    monkeypatch.setattr(gpu_experts, "describes", lambda device: request.param)


@pytest.mark.parametrize("held", [16, gpu_pairs.SORTED])
@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "num_chosen", "rows"),
    [(1, 4, 2, 16), (21, 4, 2, 4), (40, 3, 1, 16), (70, 6, 3, 8)],
)
def test_pairs_are_sorted_by_expert_and_cut_into_tiles(
    num_tokens, num_experts, num_chosen, rows, held, monkeypatch
):
    monkeypatch.setattr(gpu_pairs, "SORTED", held)
    routing = routed(num_tokens, num_experts, num_chosen)
    pairs = gpu_pairs.by_expert(routing, rows)
    chosen = routing.chosen.tolist()
    want = [(e, t) for e in range(num_experts) for t in range(num_tokens) if e in chosen[t]]
    assert pairs.tokens.tolist() == [t for _, t in want]
    places = [[want.index((e, t)) for e in chosen[t]] for t in range(num_tokens)]
    assert pairs.places.tolist() == places
    covered = []
    for expert, first, end in pairs.tiles.T.tolist():
        for place in range(first, min(end, first + rows)):
            assert want[place][0] == expert
            covered.append(place)
    assert covered == list(range(len(want)))


def test_whoever_chose_an_expert_twice_is_one_pair():
    """As what stands for no token in a graph may."""
    chosen = torch.tensor([[2, 2], [0, 2], [1, 1]], device=DEVICE)
    pairs = gpu_pairs.by_expert(Routing(torch.ones(3, 4, device=DEVICE), chosen), 16)
    assert pairs.places.tolist() == [[2, 2], [0, 3], [1, 1]]
    assert pairs.tokens[:4].tolist() == [1, 2, 0, 1]
    assert pairs.tiles.T.tolist() == [[0, 0, 1], [1, 1, 2], [2, 2, 4], [0, 0, 0]]


def check_ffn(num_tokens, hidden, neurons, activation, masked, dtype=torch.float32, num_experts=5):
    x, residual = (random(num_tokens, hidden, seed=i, dtype=dtype) for i in (0, 7))
    routing = routed(num_tokens, num_experts)
    gate_up = random(num_experts * neurons, 2 * hidden, seed=4, dtype=dtype) / hidden**0.5
    down = random(num_experts * neurons, hidden, seed=5, dtype=dtype) / 9
    mask = None
    if masked:
        mask = random(num_tokens, num_experts * neurons, seed=6) > 0.5
    rest = (mask, activation, 0.0, FfnMode.DENSE, routing)
    want = reference.experts(x, residual, 0.5, gate_up, down, *rest)
    got = gpu_experts.ffn(x, residual, 0.5, gate_up, down, mask, activation, 0.0, routing)
    close(got, want)


@pytest.mark.usefixtures("described")
@pytest.mark.parametrize(("num_tokens", "hidden", "neurons"), [(1, 32, 48), (41, 48, 80)])
@pytest.mark.parametrize(("activation", "masked"), [(DRELU, True), (RELU, True), (SILU, False)])
def test_ffn(num_tokens, hidden, neurons, activation, masked):
    check_ffn(num_tokens, hidden, neurons, activation, masked)


def check_predict(num_tokens, hidden, neurons, rank, dtype=torch.float32, rounded=False):
    num_experts = 5
    residual, routing = random(num_tokens, hidden, dtype=dtype), routed(num_tokens, num_experts)
    fc1 = random(num_experts * rank, hidden, seed=2, dtype=dtype) / hidden**0.5
    fc2 = random(num_experts * neurons, rank, seed=3, dtype=dtype) / rank**0.5
    scales = None
    if rounded:  # rows of very different sizes: a scale at the wrong row would show
        (fc1, scale1), (fc2, scale2) = float8(fc1), float8(fc2)
        scales = tuple(s * random(len(s), seed=8).exp() for s in (scale1, scale2))
    scores = reference_predict.expert_scores(residual, fc1, fc2, num_experts, scales)
    found = gpu_experts.predict(residual, fc1, fc2, 0.2, routing, scales)
    sent = (routing.weights != 0).repeat_interleave(neurons, 1)
    near = (1e-3 if dtype is torch.float32 else 2e-2) * scores.abs().mean()
    clear = sent & ((scores - 0.2).abs() > near)  # near the threshold rounding may decide
    assert (found == (scores > 0.2))[clear].all()
    assert clear.sum() > 0.95 * sent.sum()


@pytest.mark.usefixtures("described")
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize(
    ("num_tokens", "hidden", "neurons", "rank"), [(1, 32, 48, 16), (41, 48, 80, 32)]
)
def test_predict(num_tokens, hidden, neurons, rank, rounded):
    check_predict(num_tokens, hidden, neurons, rank, rounded=rounded)


def test_tiles_are_narrower_where_few_of_them_are(monkeypatch):
    monkeypatch.setattr(gpu_experts, "tiles_for", lambda *_: gpu_experts.Tiles(16, 256, 32, 2, 4))
    check_ffn(3, 32, 144, DRELU, True)


@gpu_only
@pytest.mark.parametrize("dtype", [HALF, torch.float16, torch.float32])
@pytest.mark.parametrize("num_tokens", [1, 33, 128, 300, 1100])
def test_at_7b(num_tokens, dtype):
    if dtype is torch.float32 and num_tokens > 33:
        pytest.skip("a minute each")
    check_ffn(num_tokens, 4096, 3584, DRELU, True, dtype)
    check_ffn(num_tokens, 4096, 3584, SILU, False, dtype)
    check_predict(num_tokens, 4096, 3584, 1088, dtype)


@gpu_only
@pytest.mark.usefixtures("described")
@pytest.mark.parametrize("num_tokens", [20, 200])
@pytest.mark.parametrize(("hidden", "neurons", "rank"), [(48, 80, 16), (528, 1040, 112)])
def test_of_ugly_sizes(num_tokens, hidden, neurons, rank):
    check_ffn(num_tokens, hidden, neurons, DRELU, True, HALF)
    check_predict(num_tokens, hidden, neurons, rank, HALF, rounded=True)
