"""Every backend against the reference, at sizes that no kernel is tuned for."""

import pytest
import torch

from turbosparse.models.batch import FfnMode, ForwardBatch
from turbosparse.models.config import Activation
from turbosparse.models.kernels import cpu, ops, reference

TOKENS = (1, 2, 5, 19, 33)
ATOL = 2e-5


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, atol=ATOL, rtol=1e-5)


@pytest.mark.parametrize("num_tokens", TOKENS)
@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (19, 99), (384, 989)])
def test_linear(num_tokens, columns, rows):
    x, weight = random(num_tokens, columns), random(rows, columns, seed=1)
    close(cpu.linear(x, weight) / columns**0.5, reference.linear(x, weight) / columns**0.5)


@pytest.mark.parametrize("num_tokens", TOKENS)
def test_norms_and_sums_around_products(num_tokens):
    x, residual, norm = random(num_tokens, 99), random(num_tokens, 99, seed=1), random(99, seed=2)
    weight = random(99, 99, seed=3) / 10
    close(cpu.rms_norm(x, norm, 1e-5), reference.rms_norm(x, norm, 1e-5))
    want = reference.norm_linear(x, norm, 1e-5, weight)
    close(cpu.norm_linear(x, norm, 1e-5, weight), want)
    for scale in (1.0, 0.3):
        want = reference.linear_add(x, weight, residual, scale)
        close(cpu.linear_add(x, weight, residual, scale), want)


def ffn_weights(hidden: int, neurons: int) -> tuple[torch.Tensor, torch.Tensor]:
    return random(neurons, 2 * hidden, seed=1) / hidden**0.5, random(neurons, hidden, seed=2) / 9


def clear_threshold(x: torch.Tensor, gate_up: torch.Tensor) -> float:
    """A FATReLU threshold that no gate is near: at a step, rounding would decide."""
    gates = (x @ gate_up[:, : x.shape[1]].T).flatten().sort().values
    gates = gates[(gates > 0.02) & (gates < 0.2)]
    widest = gates.diff().argmax()
    return ((gates[widest] + gates[widest + 1]) / 2).item()


@pytest.mark.parametrize("activation", [a for a in Activation if a.is_sparse])
@pytest.mark.parametrize("mode", FfnMode)
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("hidden", "neurons"), [(19, 99), (64, 989), (40, 1700)])
def test_ffn_means_the_same_in_every_mode(activation, mode, masked, hidden, neurons):
    gate_up, down = ffn_weights(hidden, neurons)
    for num_tokens in TOKENS:
        x = random(num_tokens, hidden)
        mask = random(num_tokens, neurons, seed=3) > 1.2 if masked else None
        threshold = clear_threshold(x, gate_up)
        want = reference.ffn(x, gate_up, down, mask, activation, threshold, FfnMode.DENSE)
        for backend in (cpu, reference):
            close(backend.ffn(x, gate_up, down, mask, activation, threshold, mode), want)


@pytest.mark.parametrize("mode", FfnMode)
@pytest.mark.parametrize("kept", [0, 1])
def test_ffn_of_no_neuron_and_of_all(mode, kept):
    gate_up, down = ffn_weights(32, 99)
    x, mask = random(3, 32), torch.full((3, 99), bool(kept))
    want = reference.ffn(x, gate_up, down, None, Activation.DRELU, 0, mode) * kept
    for backend in (cpu, reference):
        close(backend.ffn(x, gate_up, down, mask, Activation.DRELU, 0.0, mode), want)


def cpu_ops(x: torch.Tensor, mode: FfnMode) -> dict[str, torch.Tensor]:
    """Every op that sums over a token's values, on the same weights."""
    gate_up, down = ffn_weights(48, 989)
    mask = cpu.predict(x, random(13, 48, seed=4), random(989, 13, seed=5), 0.3)
    found = {"mask": mask, "linear": cpu.linear(x, random(99, 48, seed=3))}
    found["norm"] = cpu.rms_norm(x, random(48, seed=6), 1e-5)
    found["sum"] = cpu.linear_add(x, random(48, 48, seed=3), x.flip(1), 0.3)
    found["gated"] = cpu.gated(x, gate_up, Activation.SILU, 0.0)
    for name, kept in (("masked", mask), ("gate first", None)):
        found[name] = cpu.ffn(x, gate_up, down, kept, Activation.DRELU, 0.0, mode)
    return found


@pytest.mark.parametrize("num_tokens", TOKENS)
@pytest.mark.parametrize("mode", FfnMode)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_bits_depend_neither_on_neighbours_nor_on_mode_nor_on_threads(
    num_tokens, mode, num_threads
):
    """A sum in another order rounds differently, and a greedy text turns at the first near tie."""
    x = random(33, 48)
    want = cpu_ops(x, FfnMode.DENSE)
    before = cpu.get_num_threads()
    cpu.set_num_threads(num_threads)
    try:
        got = cpu_ops(x[-num_tokens:].clone(), mode)
    finally:
        cpu.set_num_threads(before)
    for name in want:
        assert torch.equal(got[name], want[name][-num_tokens:]), name


def test_a_strided_input_is_refused():
    """A kernel takes an address: it would read the wrong numbers."""
    with pytest.raises(AssertionError):
        cpu.linear(random(4, 96)[:, ::2], random(9, 48))


def test_gated_silu():
    gate_up, _ = ffn_weights(48, 99)
    x = random(19, 48)
    close(
        cpu.gated(x, gate_up, Activation.SILU, 0.0),
        reference.gated(x, gate_up, Activation.SILU, 0.0),
    )


@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_predict(threshold):
    fc1, fc2 = random(13, 48, seed=1), random(989, 13, seed=2)
    for num_tokens in TOKENS:
        x = random(num_tokens, 48)
        scores = (x @ fc1.T).relu() @ fc2.T
        near = (scores - threshold).abs() < 1e-4  # rounding decides these
        got, want = (b.predict(x, fc1, fc2, threshold) for b in (cpu, reference))
        assert ((got == want) | near).all()
        assert near.float().mean() < 0.01


@pytest.mark.parametrize("num_tokens", TOKENS)
def test_predict_with_a_threshold_for_each_token(num_tokens):
    """Each token as in a step where all have its threshold; minus infinity keeps everything."""
    fc1, fc2, x = random(13, 48, seed=1), random(989, 13, seed=2), random(num_tokens, 48)
    choices = [-torch.inf, 0.0, 0.4, torch.inf]
    thresholds = torch.tensor([choices[t % 4] for t in range(num_tokens)])
    for backend in (cpu, reference):
        got = backend.predict(x, fc1, fc2, thresholds)
        want = {c: backend.predict(x, fc1, fc2, c) for c in choices}
        for t in range(num_tokens):
            assert torch.equal(got[t], want[choices[t % 4]][t])
        assert got[0].all()


@pytest.mark.parametrize("vocab", [1, 19, 989, 8192])
@pytest.mark.parametrize("limits", ["none", "top_k", "top_p", "min_p", "all"])
def test_draw(vocab, limits):
    """The same tokens: none of these points falls where rounding would decide."""
    generator = torch.Generator().manual_seed(vocab)
    for num_rows in TOKENS:
        logits = 4 * torch.randn(num_rows, vocab, generator=generator)
        logits[:, vocab // 2 + 1 :: 7] = -torch.inf  # as a stop token before min_tokens
        temperature = 0.3 + torch.rand(num_rows, generator=generator)
        points = torch.rand(num_rows, generator=generator, dtype=torch.float64)
        top_k = torch.randint(1, vocab + 1, (num_rows,), generator=generator)
        top_p = 0.05 + 0.9 * torch.rand(num_rows, generator=generator)
        min_p = 0.2 * torch.rand(num_rows, generator=generator)
        if limits not in ("top_k", "all"):
            top_k.fill_(vocab)
        if limits not in ("top_p", "all"):
            top_p.fill_(1.0)
        if limits not in ("min_p", "all"):
            min_p.fill_(0.0)
        asked = None if limits == "none" else (top_k, top_p, min_p)
        got = cpu.draw(logits, temperature, points, asked)
        assert got.tolist() == reference.draw(logits, temperature, points, asked).tolist()
        assert (logits.gather(1, got[:, None]) > -torch.inf).all()


@pytest.mark.parametrize("heads", [(1, 1), (6, 2), (4, 4)])
@pytest.mark.parametrize("window", [None, 1, 7])
@pytest.mark.parametrize("dim", [8, 10])
def test_attention_over_scattered_pages(heads, window, dim):
    """Three requests: a prefill, a continued chunk, a decode; pages interleaved among them."""
    num_heads, kv_heads = heads
    page, lens = 4, ((9, 9), (5, 23), (1, 14))
    num_pages = 24
    tables = torch.randperm(num_pages, generator=torch.Generator().manual_seed(0)).view(3, 8)
    places = [(b, p) for b, (n, total) in enumerate(lens) for p in range(total - n, total)]
    requests, positions = (torch.tensor(c) for c in zip(*places, strict=True))
    batch = ForwardBatch(
        token_ids=positions,
        positions=positions,
        slots=tables[requests, positions // page] * page + positions % page,
        request_ids=requests,
        page_tables=tables.int(),
        query_lens=tuple(n for n, _ in lens),
        context_lens=tuple(total for _, total in lens),
        sample_at=positions,
        ffn_mode=FfnMode.DENSE,
    )
    qkv = random(len(places), (num_heads + 2 * kv_heads) * dim)
    angles = random(32, dim // 2, seed=4)
    results = []
    for backend in (cpu, reference):
        caches = [random(num_pages, kv_heads, page, dim, seed=s) for s in (5, 6)]
        q = backend.rotate_and_store(qkv, angles.cos(), angles.sin(), *caches, batch)
        results.append([q, *caches, backend.attend(q, *caches, batch, dim**-0.5, window)])
    for got, want in zip(*results, strict=True):
        close(got, want)


def test_the_door_says_what_it_chose_and_why():
    chosen, declined = ops.select(torch.device("cpu"), torch.float32)
    mean_what_they_do = {"predict_experts", "experts"}  # experts take turns on a CPU
    backends = chosen.chosen()
    assert {op for op, backend in backends.items() if backend == "reference"} == mean_what_they_do
    assert set(backends.values()) == {"cpu", "reference"}
    assert declined == {"gpu": "needs a cuda device, not cpu"}
    chosen, declined = ops.select(torch.device("cpu"), torch.bfloat16)
    assert set(chosen.chosen().values()) == {"reference"}
    assert declined["cpu"] == "computes in float32, not torch.bfloat16"


def test_a_backend_whose_library_is_missing_says_so(monkeypatch):
    def missing(name, package):
        raise ModuleNotFoundError(f"No module named {name!r}", name="numba")

    imported = ops.import_module
    monkeypatch.setattr(
        ops, "import_module", lambda n, p: missing(n, p) if n == ".cpu" else imported(n, p)
    )
    chosen, declined = ops.select(torch.device("cpu"), torch.float32)
    assert set(chosen.chosen().values()) == {"reference"}
    assert declined["cpu"] == "numba is not installed"
