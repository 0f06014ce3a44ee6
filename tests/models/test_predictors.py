"""Separate predictors, PowerInfer's folders of `model_{layer}.pt`: approximate by definition."""

import json

import published
import pytest
import torch
from whole import logits_of

from turbosparse.models import divergence
from turbosparse.models.batch import FfnMode
from turbosparse.models.config import ModelError
from turbosparse.models.load import LoadedModel, load

IDS = list(range(20))


def read(directory, **options) -> LoadedModel:
    return load(directory, torch.device("cpu"), torch.float32, **options)


def write_predictors(folder, config, *, neurons=None, threshold=None):
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    neurons = neurons or config["intermediate_size"]
    for i in range(config["num_hidden_layers"]):
        state = {
            "fc1.weight": torch.randn(8, config["hidden_size"], generator=generator),
            "fc2.weight": torch.randn(neurons, 8, generator=generator),
        }
        torch.save(state, folder / f"model_{i}.pt")
    if threshold is not None:
        (folder / "config.json").write_text(json.dumps({"sparse_threshold": threshold}))
    return folder


def test_separate_predictors_make_a_model_approximate(tmp_path):
    directory = published.make(tmp_path / "model", "bamboo")
    folder = write_predictors(tmp_path / "predictors", published.config_of("bamboo"), threshold=0.5)
    exact, model = read(directory), read(directory, predictors=folder)
    assert (exact.exact, exact.approximation) == (True, None)
    assert not model.exact
    assert model.approximation.startswith(
        "separate low_rank predictors from predictors (threshold 0.5); on 64 random tokens"
    )
    modes = [logits_of(model.decoder, IDS, mode) for mode in FfnMode]
    torch.testing.assert_close(modes[0], modes[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(modes[0], modes[2], atol=1e-4, rtol=0)
    assert (modes[0] - logits_of(exact.decoder, IDS, FfnMode.DENSE)).abs().max() > 0.1


def test_what_separate_predictors_cost_is_measured(tmp_path):
    """A threshold below every score keeps all and costs nothing; one above all drops everything."""
    config = published.config_of("bamboo")
    decoder = read(published.make(tmp_path / "model", "bamboo")).decoder
    exact = divergence.baseline(decoder)
    measured = {}
    for threshold in (-1e9, 0.0, 1e9):
        folder = write_predictors(tmp_path / f"at {threshold}", config, threshold=threshold)
        model = read(tmp_path / "model", predictors=folder)
        measured[threshold] = divergence.measure(model.decoder, exact)
        assert str(measured[threshold]) in model.approximation
    everything, some, nothing = measured.values()
    assert (everything.kept, everything.recall) == (pytest.approx(1), 1)
    assert (nothing.kept, nothing.recall) == (0, 0)
    assert 0.1 < some.kept < 0.9
    assert 0.1 < some.recall < 0.9
    assert abs(everything.nats) < 1e-6
    assert min(some.nats, nothing.nats) > 0.01


def test_separate_predictors_that_do_not_belong_are_refused(tmp_path):
    config = published.config_of("bamboo")
    directory = published.make(tmp_path / "model", "bamboo")
    other = write_predictors(tmp_path / "other", config, neurons=64)
    with pytest.raises(ModelError, match=r"model_0\.pt: fc1 .* do not fit"):
        read(directory, predictors=other)
    folder = write_predictors(tmp_path / "ours", config)
    (folder / "model_2.pt").unlink()
    with pytest.raises(ModelError, match=r"model_2\.pt is missing"):
        read(directory, predictors=folder)
    for name in ("turbosparse-mistral", "turbosparse-mixtral"):
        turbo = published.make(tmp_path / name, name)
        with pytest.raises(ModelError, match="predictors of its own"):
            read(turbo, predictors=folder)
    dense = published.make(tmp_path / "silu", "sakana", model_type="llama", hidden_act="silu")
    with pytest.raises(ModelError, match="need a dense ReLU model, not llama"):
        read(dense, predictors=folder)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"fc1.weight": torch.ones(8, 48)}, "does not hold the matrices fc1.weight and fc2.weight"),
        ({"fc1.weight": torch.ones(8, 48), "fc2.weight": 5}, "does not hold the matrices"),
        ({"fc1.weight": torch.ones(48), "fc2.weight": torch.ones(100)}, "does not hold the matr"),
        ({"fc1.weight": torch.ones(8, 49), "fc2.weight": torch.ones(100, 8)}, "do not fit hidden"),
        ({"fc1.weight": torch.ones(8, 48), "fc2.weight": torch.ones(100, 9)}, "do not fit hidden"),
        ({"fc1.weight": torch.ones(8, 48), "fc2.weight": torch.ones(8, 100)}, "do not fit hidden"),
        ([torch.ones(8, 48)], "expected an object"),
    ],
)
def test_a_predictor_file_of_another_content_is_named(tmp_path, state, message):
    directory = published.make(tmp_path / "model", "bamboo")
    folder = write_predictors(tmp_path / "predictors", published.config_of("bamboo"))
    torch.save(state, folder / "model_1.pt")
    with pytest.raises(ModelError, match=rf"model_1\.pt.*{message}"):
        read(directory, predictors=folder)


def test_a_predictor_file_that_is_no_pickle_is_named(tmp_path):
    directory = published.make(tmp_path / "model", "bamboo")
    folder = write_predictors(tmp_path / "predictors", published.config_of("bamboo"))
    whole = (folder / "model_1.pt").read_bytes()
    for content in (b"", b"\0" * 50, b"text", whole[: len(whole) // 2]):
        (folder / "model_1.pt").write_bytes(content)
        with pytest.raises(ModelError, match=r"model_1\.pt is damaged"):
            read(directory, predictors=folder)


def test_a_threshold_that_is_no_number_is_named(tmp_path):
    directory = published.make(tmp_path / "model", "bamboo")
    config = published.config_of("bamboo")
    folder = write_predictors(tmp_path / "predictors", config, threshold="half")
    with pytest.raises(ModelError, match=r"config\.json: sparse_threshold must be a number"):
        read(directory, predictors=folder)


class Evil:
    def __reduce__(self):
        return (print, ("a pickle ran code",))


def test_a_predictor_file_cannot_run_code(tmp_path, capsys):
    config = published.config_of("bamboo")
    directory = published.make(tmp_path / "model", "bamboo")
    folder = write_predictors(tmp_path / "predictors", config)
    torch.save({"fc1.weight": Evil()}, folder / "model_0.pt")
    with pytest.raises(ModelError, match=r"model_0\.pt is damaged, or holds more than tensors"):
        read(directory, predictors=folder)
    assert "ran code" not in capsys.readouterr().out
