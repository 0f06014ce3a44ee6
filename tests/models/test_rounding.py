"""Predictors in 8 bits: another function than the checkpoint's, nearly, and said to be."""

from dataclasses import replace

import published
import pytest
import torch
from test_predictors import write_predictors
from whole import logits_of

from turbosparse.models import calibration_cache, divergence, rounding
from turbosparse.models.batch import FfnMode
from turbosparse.models.config import ModelError
from turbosparse.models.kernels import ops
from turbosparse.models.kernels.reference_predict import FLOAT8, float8, whole
from turbosparse.models.load import LoadedModel, load
from turbosparse.models.neurons import predictors_of
from turbosparse.models.sequence import sequence_batch
from turbosparse.models.sparsity.predictor import OraclePredictor

CPU = torch.device("cpu")
IDS = list(range(20))
NAMES = ["turbosparse-mistral", "turbosparse-mixtral"]


def read(directory, **options) -> LoadedModel:
    return load(directory, CPU, torch.float32, **options)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Hundreds of tiny kernels: where a core is busy, each would wait for its second thread."""
    chosen = ops.select(CPU, torch.float32)[0]
    before = ops.get_num_threads(chosen)
    ops.set_num_threads(1, chosen)
    yield
    ops.set_num_threads(before, chosen)


@pytest.fixture(scope="module", params=NAMES)
def own(request, tmp_path_factory):
    return published.make(tmp_path_factory.mktemp("own") / "model", request.param)


@pytest.fixture(scope="module")
def bamboo(tmp_path_factory):
    return published.make(tmp_path_factory.mktemp("bamboo") / "model", "bamboo")


def test_a_row_is_rounded_on_a_scale_of_its_own():
    """A million times smaller it keeps as many bits; a row of zeros stays one."""
    weight = torch.randn(5, 99, generator=torch.Generator().manual_seed(0))
    weight[1] *= 1e-6
    weight[2] = 0
    values, scale = float8(weight)
    assert (values.dtype, scale.dtype) == (FLOAT8, torch.float32)
    assert values.float().abs().amax(1).tolist() == [448, 448, 0, 448, 448]
    back = whole(values, scale)
    assert not back[2].any()
    largest = weight.abs().amax(1, keepdim=True)
    error = (back - weight).abs()
    assert (error <= torch.maximum(weight.abs() / 16, largest * 2**-17)).all(), "3 bits of mantissa"
    assert error[[0, 1, 3, 4]].max() > 0, "something was rounded"


def test_rounded_predictors_make_a_model_approximate(own):
    exact, model = read(own), read(own, predictor_dtype="float8")
    assert exact.exact
    assert not model.exact
    assert model.approximation.startswith(
        "its own predictors, rounded to float8; on 64 random tokens: "
    )
    assert (model.predictor_dtype, exact.predictor_dtype) == ("float8", None)
    assert model.num_parameters == exact.num_parameters
    want = logits_of(exact.decoder, IDS, FfnMode.DENSE)
    modes = [logits_of(model.decoder, IDS, mode) for mode in FfnMode]
    for logits in modes:
        torch.testing.assert_close(logits, modes[0], atol=1e-4, rtol=0)
    assert (modes[0] - want).abs().max() > 1e-3, "some neuron was chosen otherwise"


def test_what_rounding_costs_is_measured_against_the_models_own_masks(own):
    decoder = read(own).decoder
    before = divergence.baseline(decoder)
    same = divergence.measure(decoder, before)
    assert (same.recall, same.nats) == (1, pytest.approx(0, abs=1e-6))
    active = before.observed.active.mean().item()
    assert same.kept == pytest.approx(active, rel=1e-4), "of the experts that were chosen"
    rounding.round_predictors(decoder)
    rounded = divergence.measure(decoder, before)
    assert 0.9 < rounded.recall < 1
    assert rounded.kept == pytest.approx(active, rel=0.1)
    assert rounded.nats > 0
    assert str(rounded) in read(own, predictor_dtype="float8").approximation


def test_a_rounded_predictor_is_the_one_whose_weights_were_rounded(own):
    """And both kinds of ops say so, at one threshold and at one a token."""
    plain, rounded = read(own).decoder, read(own, predictor_dtype="float8").decoder
    for predictor in predictors_of(plain):
        for layer in (predictor.fc1, predictor.fc2):
            layer.weight.copy_(whole(*float8(layer.weight)))
    residual = torch.randn(9, 48, generator=torch.Generator().manual_seed(1))
    each = torch.tensor([-torch.inf, 0.0, 0.3]).repeat(3)
    for ours, want in zip(predictors_of(rounded), predictors_of(plain), strict=True):
        assert (ours.fc1.weight.dtype, ours.fc2.weight.dtype) == (FLOAT8, FLOAT8)
        near = want.scores(residual, residual).abs() < 1e-4
        near |= (want.scores(residual, residual) - 0.3).abs() < 1e-4
        for thresholds in (None, each):
            found = ours.select(residual, residual, thresholds)
            assert ((found == want.select(residual, residual, thresholds)) | near).all()
        torch.testing.assert_close(
            ours.scores(residual, residual), want.scores(residual, residual), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("stacked", ["before", "after"])
def test_rounded_experts_may_be_stacked(tmp_path, stacked):
    decoder = read(published.make(tmp_path, "turbosparse-mixtral")).decoder
    apart = read(tmp_path, predictor_dtype="float8").decoder
    batch = replace(sequence_batch(torch.arange(9)), thresholds=torch.tensor([-1.0, 0, 0.2] * 3))
    residual = torch.randn(9, 48, generator=torch.Generator().manual_seed(2))
    layer = decoder.layers[0]
    for act in sorted(("round", "stack"), reverse=stacked == "before"):
        layer.ffn.stack() if act == "stack" else layer.ffn.round_predictors()
    got = layer.ffn(residual, layer.ffn_norm, batch, 0)
    want = apart.layers[0].ffn(residual, layer.ffn_norm, batch, 0)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    joined = layer.ffn.stacked.predictors
    assert joined.fc1.dtype == joined.fc2.dtype == FLOAT8
    first = layer.ffn.experts[1].predictor.fc1
    rank = len(first.weight)
    assert first.weight.data_ptr() == joined.fc1[rank:].data_ptr(), "kept once"


def test_separate_predictors_are_rounded_too(bamboo, tmp_path):
    folder = write_predictors(tmp_path / "p", published.config_of("bamboo"), threshold=0.5)
    model = read(bamboo, predictors=folder, predictor_dtype="float8")
    assert model.approximation.startswith(
        "separate low_rank predictors from p (threshold 0.5), rounded to float8; on 64 random"
    )
    assert {p.fc1.weight.dtype for p in predictors_of(model.decoder)} == {FLOAT8}


def test_what_cannot_be_rounded_is_refused(bamboo, own, monkeypatch):
    with pytest.raises(ModelError, match=r"predictor_dtype='float8' .* bamboo model has no predic"):
        read(bamboo, predictor_dtype="float8")
    with pytest.raises(ModelError, match="predictor_dtype='int4' is not one of auto, float8"):
        read(own, predictor_dtype="int4")
    decoder = read(bamboo).decoder
    for layer in decoder.layers:
        ffn = layer.ffn
        ffn.predictor = OraclePredictor(ffn.gate_up, ffn.activation, ffn.threshold)
    with pytest.raises(ModelError, match=r"needs low-rank predictors; .* has OraclePredictor"):
        rounding.round_predictors(decoder)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(ModelError, match=r"needs compute capability 8\.9, not 8\.6"):
        rounding.check("float8", torch.device("cuda"))
    rounding.check("auto", torch.device("cuda"))


def test_modes_are_not_taken_from_a_start_with_other_predictors(own):
    keys = [
        calibration_cache.key(read(own, **options).decoder, [1], 0.1, False)
        for options in ({}, {"predictor_dtype": "float8"})
    ]
    differing = {name for name in keys[0] if keys[0][name] != keys[1][name]}
    assert differing == {"predictor_dtypes"}
