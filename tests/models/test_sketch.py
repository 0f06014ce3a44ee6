"""A layer's gate and up in 3 or 4 bits: what is packed is what is unpacked, on every backend."""

import planted
import pytest
import torch

from turbosparse.models.artifact import neurons_of
from turbosparse.models.config import Activation, ModelError
from turbosparse.models.kernels import cpu, reference
from turbosparse.models.load import load
from turbosparse.models.sequence import observe, random_ids
from turbosparse.models.sparsity.predictor import Neurons, OraclePredictor, recall
from turbosparse.models.sparsity.sketch import SketchPredictor, quantised, sketch_of

BITS = pytest.mark.parametrize("bits", [3, 4])


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_codes(bits: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 1 << bits, shape, generator=torch.Generator().manual_seed(bits))


@BITS
def test_codes_come_back_as_they_were_packed(bits):
    codes = random_codes(bits, 5, 2, 160)
    packed = reference.pack(codes, bits)
    assert packed.shape == (5, 2, bits, 5)
    assert packed.numel() * 32 == codes.numel() * bits, "no bit is lost to alignment"
    units = reference.unpack(packed, torch.ones(5, 2, 1))
    assert torch.equal(units + ((1 << bits) - 1) / 2, codes.float())


@BITS
@pytest.mark.parametrize(("neurons", "rows", "hidden"), [(1, 1, 32), (99, 2, 64), (70, 1, 320)])
def test_the_cpu_kernel_means_what_the_reference_does(bits, neurons, rows, hidden):
    codes = reference.pack(random_codes(bits, neurons, rows, hidden), bits)
    scales = random(neurons, rows, hidden // 32 // (2 if hidden % 64 == 0 else 1), seed=1).abs()
    for num_tokens in (1, 2, 5, 19):
        x = random(num_tokens, hidden, seed=2)
        scores = reference.sketch_scores(x, codes, scales)
        for threshold in (0.3, random(num_tokens, seed=3), -torch.inf):
            limit = threshold[:, None] if isinstance(threshold, torch.Tensor) else threshold
            clear = (scores - limit).abs() > 1e-3  # near the threshold rounding may decide
            want = reference.sketch(x, codes, scales, threshold)
            got = cpu.sketch(x, codes, scales, threshold)
            assert (got == want)[clear].all()
            assert clear.float().mean() > 0.9


def test_bits_of_a_token_do_not_depend_on_its_neighbours():
    codes, scales = reference.pack(random_codes(4, 70, 2, 64), 4), random(70, 2, 1).abs()
    x = random(19, 64, seed=1)
    together = cpu.sketch(x, codes, scales, 0.0)
    alone = torch.cat([cpu.sketch(x[t, None], codes, scales, 0.0) for t in range(19)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize(("bits", "most"), [(3, 0.2), (4, 0.105)])
def test_the_error_is_near_that_of_the_best_even_steps(bits, most):
    """A normal variable in 8 and 16 even steps: 0.19 and 0.107 (Max 1960, table II)."""
    rows = random(64, 512)
    codes, scales = quantised(rows, bits, 64)
    error = reference.unpack(codes, scales) - rows
    assert error.std() / rows.std() < most
    assert abs(error.mean()) < 5e-3


def test_a_row_of_zeros_stays_one():
    codes, scales = quantised(torch.zeros(2, 64), 4, 64)
    assert (reference.unpack(codes, scales) == 0).all()


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize(("name", "least"), [("bamboo", 0.9), ("prosparse", 0.9)])
def test_four_bits_find_most_of_the_active_neurons(tmp_path, name, least, group):
    """Seeded weights and tokens: the shares are fixed."""
    directory = planted.make(tmp_path / name, name, num_key_value_heads=4)
    decoder = load(directory, torch.device("cpu"), torch.float32, backends=("reference",)).decoder
    seen = observe(decoder, random_ids(decoder, 64))
    for layer, (x, residual) in zip(decoder.layers, seen.ffn_inputs, strict=True):
        neurons = neurons_of(layer.ffn)
        oracle = OraclePredictor.of({}, neurons, 0.0, decoder.ops)
        truth = oracle.select(residual, x)
        found = {}
        for bits in (3, 4):
            tensors = sketch_of(neurons, bits, group)
            sketch = SketchPredictor.of(tensors, neurons, neurons.threshold, decoder.ops)
            mask = sketch.select(residual, x)
            assert mask.float().mean() < truth.float().mean() + 0.03, "it does not keep everything"
            found[bits] = recall(mask, truth)
        assert found[4] > max(least, found[3])


def test_what_cannot_be_sketched_is_refused():
    def refusal(hidden: int, group: int) -> str:
        with pytest.raises(ModelError) as caught:
            sketch_of(Neurons(torch.zeros(4, 2 * hidden), Activation.RELU, 0.0), 4, group)
        return str(caught.value)

    assert "hidden_size 48 is no multiple of 32" in refusal(48, 32)
    for group in (0, 48, 128):
        assert f"a group of {group} does not fit" in refusal(64, group)


def test_tensors_of_another_shape_are_refused():
    neurons = Neurons(random(8, 128), Activation.DRELU, 0.0)
    good = sketch_of(neurons, 4, 64)
    for name, value in (
        ("codes", good["codes"][:, :1]),
        ("codes", good["codes"].long()),
        ("codes", good["codes"][:, :, :2]),
        ("scales", good["scales"][:7]),
        ("scales", good["scales"].repeat(1, 1, 3)),
    ):
        with pytest.raises(ModelError, match=r"do not fit hidden_size 64 and 8 neurons of 2 rows"):
            SketchPredictor.of(good | {name: value}, neurons, 0.0, None)
