"""Predictors, modes and the policy between them: what is skipped, and who decides how."""

from dataclasses import replace

import published
import pytest
import torch
from whole import logits_of

from turbosparse.models.batch import FfnMode
from turbosparse.models.load import LoadedModel, load
from turbosparse.models.sequence import observe, sequence_batch
from turbosparse.models.sparsity.policy import FfnPolicy
from turbosparse.models.sparsity.predictor import OraclePredictor, recall

CPU = torch.device("cpu")
IDS = torch.randint(0, 97, (37,), generator=torch.Generator().manual_seed(1)).tolist()
TOKEN, UNION, DENSE = FfnMode
PLAIN = ["bamboo", "prosparse", "minicpm-s", "sakana"]  # ReLU, no predictor of their own


def read(directory, name: str) -> LoadedModel:
    return load(published.make(directory, name), CPU, torch.float32)


def oracle_of(ffn) -> OraclePredictor:
    return OraclePredictor(ffn.gate_up, ffn.activation, ffn.threshold)


# The oracle: the true mask tells a wrong kernel from a wrong prediction.


@pytest.mark.parametrize("mode", FfnMode)
@pytest.mark.parametrize("name", PLAIN)
def test_the_oracle_leaves_the_function_alone(tmp_path, name, mode):
    model = read(tmp_path, name)
    want = logits_of(model.decoder, IDS, DENSE)
    for layer in model.decoder.layers:
        layer.ffn.predictor = oracle_of(layer.ffn)
    torch.testing.assert_close(logits_of(model.decoder, IDS, mode), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", PLAIN)
def test_one_neuron_less_than_the_oracle_changes_the_function(tmp_path, name):
    """If this fails, the test above proves nothing."""

    class OneLess(OraclePredictor):
        def select(self, residual, x, thresholds=None):
            mask = super().select(residual, x, thresholds)
            mask[:, mask.sum(0).argmax()] = False
            return mask

    model = read(tmp_path, name)
    want = logits_of(model.decoder, IDS, DENSE)
    for layer in model.decoder.layers:
        ffn = layer.ffn
        ffn.predictor = OneLess(ffn.gate_up, ffn.activation, ffn.threshold)
    assert (logits_of(model.decoder, IDS, TOKEN) - want).abs().max() > 1e-3


def test_recall_counts_the_active_neurons_that_a_mask_keeps():
    truth = torch.tensor([[True, True, True, True], [False, False, False, False]])
    mask = torch.tensor([[True, False, True, True], [True, True, False, False]])
    assert recall(mask, truth) == 0.75
    assert recall(truth, truth) == 1
    assert recall(mask, torch.zeros_like(mask)) == 1, "nothing to miss"


def test_a_random_predictor_recalls_what_it_keeps_and_the_oracle_everything(tmp_path):
    model = read(tmp_path, "turbosparse-mistral")
    seen = observe(model.decoder, torch.tensor(IDS))
    for layer, (x, residual) in zip(model.decoder.layers, seen.ffn_inputs, strict=True):
        truth = oracle_of(layer.ffn).select(residual, x)
        mask = layer.ffn.predictor.select(residual, x)
        assert recall(oracle_of(layer.ffn).select(residual, x), truth) == 1
        # 3700 neurons a layer, seeded: untrained, it knows nothing of the truth.
        assert recall(mask, truth) == pytest.approx(mask.float().mean().item(), abs=0.1)


def test_the_predictor_reads_the_residual_and_not_the_normed_input(tmp_path):
    """The wrong input gives a plausible, wrong mask."""
    model = read(tmp_path, "turbosparse-mistral")
    seen = observe(model.decoder, torch.tensor(IDS))
    for layer, (x, residual) in zip(model.decoder.layers, seen.ffn_inputs, strict=True):
        predictor = layer.ffn.predictor
        right, wrong = predictor.select(residual, x), predictor.select(x, residual)
        hidden = (residual @ predictor.fc1.weight.T).relu()
        assert (right == (hidden @ predictor.fc2.weight.T > 0)).float().mean() > 0.999
        assert (right != wrong).float().mean() > 0.02


# The active fraction: what the engine reports as skipped.


@pytest.mark.parametrize("name", ["turbosparse-mistral", "bamboo"])
def test_the_active_fraction_is_the_share_of_computed_neurons(tmp_path, name):
    model = read(tmp_path, name)
    seen = observe(model.decoder, torch.tensor(IDS))
    for layer, (x, residual), active in zip(
        model.decoder.layers, seen.ffn_inputs, seen.active, strict=True
    ):
        predictor = layer.ffn.predictor or oracle_of(layer.ffn)
        torch.testing.assert_close(active, predictor.select(residual, x).float().mean())


def test_the_active_fraction_of_experts_is_of_those_that_a_token_chose(tmp_path):
    model = read(tmp_path, "turbosparse-mixtral")
    seen = observe(model.decoder, torch.tensor(IDS))
    for layer, (x, residual), active in zip(
        model.decoder.layers, seen.ffn_inputs, seen.active, strict=True
    ):
        moe = layer.ffn
        chosen = (x @ moe.router.weight.T).topk(2).indices  # [T, 2]
        masks = torch.stack([e.predictor.select(residual, x) for e in moe.experts], 1)
        picked = masks[torch.arange(len(IDS))[:, None], chosen]
        torch.testing.assert_close(active, picked.float().mean())


def test_stacked_experts_are_not_held_twice(tmp_path):
    """Dense and sparse steps read the same weights: beside them there is 5 % at most."""
    decoder = read(tmp_path, "turbosparse-mixtral").decoder
    weights = sum(p.numel() * p.element_size() for p in decoder.parameters())
    stacked = []
    for layer in decoder.layers:
        layer.ffn.stack()
        parts = layer.ffn.stacked
        stacked += [parts.predictors.fc1, parts.predictors.fc2, parts.gate_up, parts.down]
    storages = [t.untyped_storage() for t in (*decoder.parameters(), *stacked)]
    held = {storage.data_ptr(): storage.nbytes() for storage in storages}
    assert sum(held.values()) <= 1.05 * weights


def test_dense_experts_are_the_same_together_as_in_turn(tmp_path):
    decoder = read(tmp_path, "mixtral").decoder
    weights = sum(p.numel() * p.element_size() for p in decoder.parameters())
    want = observe(decoder, torch.tensor(IDS)).logits
    for layer in decoder.layers:
        layer.ffn.stack()
    got = observe(decoder, torch.tensor(IDS)).logits
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    parts = [layer.ffn.stacked for layer in decoder.layers]
    tensors = [*decoder.parameters(), *(t for p in parts for t in (p.gate_up, p.down))]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    assert sum(held.values()) == weights, "nothing is held twice"


@pytest.mark.parametrize("stacked", [False, True], ids=["in turn", "together"])
def test_experts_honour_each_tokens_threshold(tmp_path, stacked):
    """Tokens of one batch, each as in a batch where all have its threshold."""
    model = read(tmp_path, "turbosparse-mixtral")
    moe, thresholds = model.decoder.layers[0].ffn, torch.tensor([-torch.inf, 0.0, 0.3])
    if stacked:
        moe.stack()
    norm = model.decoder.layers[0].ffn_norm
    residual = torch.randn(9, 48, generator=torch.Generator().manual_seed(2))
    batch = sequence_batch(torch.arange(9))

    def run(each: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked = replace(batch, active=torch.zeros(3, 9), thresholds=each)
        return moe(residual, norm, asked, 0), asked.active[0]

    mixed, active = run(thresholds.repeat(3))
    for i, threshold in enumerate(thresholds):
        want, its_active = run(threshold.expand(9).contiguous())
        torch.testing.assert_close(mixed[i::3], want[i::3])
        torch.testing.assert_close(active[i::3], its_active[i::3])
    assert (active[::3] == 1).all(), "minus infinity keeps all"
    assert active[1::3].mean() > active[2::3].mean() > 0


def test_the_union_fraction_counts_a_neuron_once_however_many_tokens_need_it(tmp_path):
    for name in ("turbosparse-mistral", "bamboo"):
        model = read(tmp_path / name, name)
        seen = observe(model.decoder, torch.tensor(IDS))
        for layer, (x, residual), union in zip(
            model.decoder.layers, seen.ffn_inputs, seen.union, strict=True
        ):
            mask = (layer.ffn.predictor or oracle_of(layer.ffn)).select(residual, x)
            torch.testing.assert_close(union, (mask != 0).any(0).float().mean())


@pytest.mark.parametrize("stacked", [False, True], ids=["in turn", "together"])
def test_the_union_fraction_of_experts_is_of_all_experts(tmp_path, stacked):
    model = read(tmp_path, "turbosparse-mixtral")
    if stacked:
        for layer in model.decoder.layers:
            layer.ffn.stack()
    seen = observe(model.decoder, torch.tensor(IDS))
    for layer, (x, residual), union in zip(
        model.decoder.layers, seen.ffn_inputs, seen.union, strict=True
    ):
        chosen = (x @ layer.ffn.router.weight.T).topk(2).indices  # [T, 2]
        used = [
            (e.predictor.select(residual, x) & (chosen == i).any(1, keepdim=True)).any(0)
            for i, e in enumerate(layer.ffn.experts)
        ]
        torch.testing.assert_close(union, torch.stack(used).float().mean())


# The policy: measured numbers in, a mode for each padded token count out.

SECONDS = {
    1: {TOKEN: 1.0, UNION: 2.0, DENSE: 9.0},
    4: {TOKEN: 3.0, UNION: 4.0, DENSE: 9.0},
    16: {TOKEN: 9.0, UNION: 5.0, DENSE: 9.5},
    64: {TOKEN: 30.0, UNION: 20.0, DENSE: 10.0},
}


def test_the_policy_takes_the_fastest_measured_mode():
    policy = FfnPolicy.fastest(SECONDS)
    assert policy.table() == {4: "token", 16: "union", 64: "dense"}
    wanted = {1: TOKEN, 2: TOKEN, 4: TOKEN, 5: UNION, 16: UNION, 17: DENSE, 64: DENSE, 999: DENSE}
    assert {n: policy.mode_for(n) for n in wanted} == wanted


def test_the_policy_depends_on_the_numbers_alone():
    backwards = {
        size: dict(reversed(SECONDS[size].items())) for size in sorted(SECONDS, reverse=True)
    }
    assert FfnPolicy.fastest(backwards) == FfnPolicy.fastest(SECONDS)
    for tie in ((TOKEN, UNION, DENSE), (DENSE, UNION, TOKEN)):
        assert FfnPolicy.fastest({1: dict.fromkeys(tie, 1.0)}) == FfnPolicy.always(TOKEN)


def test_one_mode_for_everything():
    policy = FfnPolicy.always(UNION)
    assert {policy.mode_for(n) for n in (1, 7, 10**6)} == {UNION}
