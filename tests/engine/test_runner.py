"""The whole engine on real (tiny, random) models: greedy text does not depend on circumstances."""

import pathlib

import published
import pytest
import torch
from scripted import run, submit

from turbosparse.engine.config import EngineConfig
from turbosparse.engine.core import EngineCore
from turbosparse.engine.pages import PagePool
from turbosparse.engine.runner import build_runner
from turbosparse.engine.scheduler import Scheduler
from turbosparse.models.batch import FfnMode
from turbosparse.models.config import PAGE_SIZES, ModelError

PROMPT = torch.randint(0, 97, (23,), generator=torch.Generator().manual_seed(5)).tolist()
NAMES = ["turbosparse-mistral", "bamboo", "turbosparse-mixtral"]
BOTH = pytest.mark.parametrize("overlap", [False, True], ids=["settled-at-once", "overlapped"])


@pytest.fixture(scope="module", params=NAMES)
def directory(request, tmp_path_factory) -> pathlib.Path:
    return published.make(tmp_path_factory.mktemp("model"), request.param)


def make(
    directory, *, num_pages=200, page_size=4, budget=64, overlap=False, **options
) -> EngineCore:
    config = EngineConfig(
        model=str(directory),
        device="cpu",
        num_pages=num_pages,
        page_size=page_size,
        max_num_batched_tokens=budget,
        num_threads=1,
        **options,
    )
    runner, info = build_runner(config)
    scheduler = Scheduler(
        PagePool(num_pages, page_size),
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=budget,
        max_model_len=info.max_model_len,
    )
    return EngineCore(runner, scheduler, info.eos_token_ids, overlap=overlap)


def greedy(id, prompt, max_tokens=24, **sampling):
    return submit(id, prompt, max_tokens, temperature=0.0, ignore_eos=True, **sampling)


def others(count, seed=9):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (count,), generator=generator).tolist()
    return [torch.randint(0, 97, (n,), generator=generator).tolist() for n in lengths]


@pytest.fixture(scope="module")
def alone(directory) -> list[int]:
    core = make(directory)
    core.add(greedy("a", PROMPT))
    tokens = run(core).tokens["a"]
    assert len(set(tokens)) > 5, "a text that repeats itself proves little"
    return tokens


@BOTH
def test_the_same_among_32_others(directory, alone, overlap):
    core = make(directory, num_pages=800, overlap=overlap)
    for i, prompt in enumerate(others(32)):
        if i == 16:
            core.add(greedy("a", PROMPT))
        core.add(greedy(f"x{i}", prompt, 5 + i))
    assert run(core).tokens["a"] == alone


@pytest.mark.parametrize("page_size", [16, PAGE_SIZES[-1]])
def test_the_same_in_pages_of_any_size(directory, alone, page_size):
    """Beside the smallest, which all else here is tested with: pages filled, and never full."""
    core = make(directory, page_size=page_size, num_pages=8)
    core.add(greedy("a", PROMPT))
    core.add(greedy("b", others(1)[0]))
    assert run(core).tokens["a"] == alone


@BOTH
def test_the_same_after_preemption(directory, alone, overlap):
    core = make(directory, num_pages=24, overlap=overlap)
    for i, prompt in enumerate(others(3)):
        core.add(greedy(f"x{i}", prompt[:12], 40))
    core.add(greedy("a", PROMPT))
    request = core.requests["a"]
    got = run(core)
    assert request.num_preemptions > 0
    assert got.tokens["a"] == alone


@BOTH
def test_the_same_with_a_prefix_hit(directory, alone, overlap):
    core = make(directory, overlap=overlap)
    for name in ("first", "again"):
        core.add(greedy(name, PROMPT))
        got = run(core)
        assert got.tokens[name] == alone
    assert got.cached["again"] == 20


@pytest.mark.parametrize("mode", FfnMode)
@pytest.mark.parametrize("budget", [3, 64])
def test_the_same_in_every_mode_and_chunking(directory, alone, mode, budget):
    core = make(directory, budget=budget, ffn_mode=mode.value)
    core.add(greedy("a", PROMPT))
    assert run(core).tokens["a"] == alone


@BOTH
def test_a_seed_repeats_its_text_in_any_company(directory, overlap):
    def text(company: int) -> list[int]:
        core = make(directory, num_pages=800, overlap=overlap)
        for i, prompt in enumerate(others(company)):
            core.add(submit(f"x{i}", prompt, 9, seed=i))
        core.add(
            submit("a", PROMPT, 24, seed=11, top_p=0.9, frequency_penalty=0.5, ignore_eos=True)
        )
        return run(core).tokens["a"]

    assert text(0) == text(9)


def test_choices_share_pages_and_differ_by_seed(directory):
    core = make(directory)
    for i in range(3):
        core.add(submit(f"c{i}", PROMPT, 12, seed=i, ignore_eos=True))
    got = run(core)
    assert got.cached == {"c0": 0, "c1": 20, "c2": 20}
    assert len({tuple(tokens) for tokens in got.tokens.values()}) == 3


def test_logprobs_come_with_their_tokens(directory, alone):
    core = make(directory)
    core.add(greedy("a", PROMPT, 6, logprobs=2))
    outputs = [output for _ in range(20) for output in core.step().outputs]
    assert [output.token_id for output in outputs] == alone[:6]
    for output in outputs:
        assert output.logprobs.top[0] == (output.token_id, output.logprobs.sampled)
        assert output.logprobs.top[1][1] <= output.logprobs.sampled <= 0


@BOTH
def test_logprobs_are_the_same_bits_in_any_company(directory, overlap):
    """No sum depends on the batch, the FFN mode that its size selects, chunks or cached pages."""

    def bits(company: int, **options) -> list[float]:
        core = make(directory, num_pages=800, overlap=overlap, **options)
        for i, prompt in enumerate(others(company)):
            core.add(greedy(f"x{i}", prompt, 5 + i))
        found: list[float] = []
        for name in ("a", "again"):
            core.add(greedy(name, PROMPT, 12, logprobs=0))
            while name in core.requests:
                found += [o.logprobs.sampled for o in core.step().outputs if o.id == name]
        return found

    alone = bits(0, ffn_mode="token")
    assert alone[:12] == alone[12:]
    assert bits(31) == bits(9, budget=7) == bits(0, ffn_mode="union") == alone


def test_rows_and_pages_come_back(directory):
    core = make(directory, num_pages=24)
    for i, prompt in enumerate(others(6)):
        core.add(greedy(f"x{i}", prompt[:12], 20))
    core.step()
    core.abort(["x0", "x5"])
    run(core)
    assert sorted(core.runner.rows.free) == list(range(64))


def test_the_active_fraction_is_measured_now_and_then(directory):
    core = make(directory)
    core.add(greedy("a", PROMPT, 40))
    found = [core.step().stats.activity for _ in range(40)]
    measured = [activity for activity in found if activity is not None]
    assert 1 <= len(measured) <= 4
    for activity in measured:
        assert 0.01 < activity.active_fraction < 0.7
        # one token is its own union; of a mixture's experts it visits only some
        config = core.runner.decoder.config
        visited = config.experts_per_token / config.num_experts if config.num_experts else 1.0
        assert activity.union_fraction == pytest.approx(activity.active_fraction * visited)


def test_a_step_that_runs_out_of_memory_fails_its_requests_and_the_next_one_works(directory):
    core = make(directory)
    core.add(greedy("a", PROMPT, 3))
    hidden = core.runner.decoder.hidden
    core.runner.decoder.hidden = lambda *_: torch.empty(1 << 60)  # what torch really raises
    [output] = core.step().outputs
    assert output.finish == "error"
    assert output.out_of_memory
    core.runner.decoder.hidden = hidden
    core.add(greedy("b", PROMPT, 3))
    assert len(run(core).tokens["b"]) == 3


def test_what_cannot_be_started_says_why(directory, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for options, message in (
        ({"max_model_len": 9999}, "max_model_len=9999 is more than the model's 256 positions"),
        ({"device": "quantum"}, "device='quantum' is not a device"),
        ({"device": "cuda:7"}, "device='cuda:7': this machine has no CUDA device"),
        ({"page_size": 24}, "page_size=24 is not one of 4, 8, 16, 32, 64, 128, 256, 512"),
        ({"page_size": 2}, "page_size=2 is not one of 4, 8"),
        ({"page_size": 1024}, "page_size=1024 is not one of 4, 8"),
        ({"dtype": "int3"}, "dtype='int3' is not one of float32"),
    ):
        with pytest.raises(ModelError, match=message):
            build_runner(EngineConfig(model=str(directory), **{"device": "cpu"} | options))
