"""Training with the page pattern in the loop: what long rows read, and the gates that come out."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from scripted import run as run_engine
from test_page_choice import budgets_of
from test_runner import greedy, make
from test_train import RECIPE, SIZES, write, write_data

from turbosparse.engine.request import PageChoice
from turbosparse.models.batch import ForwardBatch
from turbosparse.models.config import ModelError
from turbosparse.models.identity import Identity
from turbosparse.models.kernels import reference_pages
from turbosparse.models.load import load
from turbosparse.models.sequence import Reads, observe, sequence_batch
from turbosparse.models.sparsity import gates as sparsity_gates
from turbosparse.models.tools import own_gates, train
from turbosparse.models.tools.fit import Data, Optimization
from turbosparse.models.tools.paging import PagedStep, pages_read
from turbosparse.models.tools.trainable import TurboSparse

PAGE, BUDGET, LENGTH = 4, 24, 256  # tokens: six pages of sixty-four
PAGED = dataclasses.replace(
    RECIPE,
    page_budget=BUDGET,
    page_size=PAGE,
    page_rank=8,
    page_places=24,
    max_steps=8,
    long_every=2,
)
PLACES = torch.arange(32, LENGTH, 9)


def random_gates(model):
    """As after some training: what they add is not zero."""
    gates = own_gates.begin(model, PAGED)
    generator = torch.Generator().manual_seed(3)
    for gate in gates:
        gate.requires_grad_(False).key.normal_(generator=generator)
    return gates


def ids_of(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, SIZES.vocab, (rows, LENGTH), generator=generator)


def wide_model():
    """One whose attention is not even: as drawn, every page would get as much."""
    torch.manual_seed(0)
    model = TurboSparse(SIZES).eval()
    for layer in model.layers:
        layer.self_attn.q_proj.weight.mul_(30)
        layer.self_attn.k_proj.weight.mul_(30)
    return model


def test_every_token_chooses_as_the_reference_does():
    heads, kv_heads, dim = 4, 2, 8
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, heads, 67, dim, generator=generator)
    k = torch.randn(2, kv_heads, 67, dim, generator=generator)
    for gate in (None, random_gates(TurboSparse(SIZES))[0]):
        pages = pages_read(q, k, gate, 6, PAGE)
        assert pages.shape == (2, kv_heads, 67, 17)
        assert pages.sum(-1).max() == 6
        for row in range(2):
            batch: ForwardBatch = dataclasses.replace(
                sequence_batch(torch.zeros(67, dtype=torch.int64)),
                page_tables=torch.arange(17, dtype=torch.int32)[None],
            )
            keys = torch.nn.functional.pad(k[row], (0, 0, 0, 1)).unflatten(1, (17, PAGE))
            summary = torch.stack((keys.amin(2), keys.amax(2)), 2).transpose(0, 1)
            budgets = budgets_of([6] * 67, gated=0.0 if gate is None else 1.0)
            projections = None if gate is None else gate.projections
            columns, counts = reference_pages.choose(
                q[row].transpose(0, 1), summary, projections, batch, budgets, PAGE, dim**-0.5, None
            )
            for t in range(67):
                for head in range(kv_heads):
                    want = columns[t, head, : counts[t, head]].tolist()
                    assert pages[row, head, t].nonzero().flatten().tolist() == want, (row, t)


def test_some_rows_read_their_budget_and_others_all():
    model = wide_model()
    gates, ids = random_gates(model), ids_of(2)
    rows = torch.tensor([True, False])
    full, _ = model(ids)
    mixed, _ = model(ids, paged=PagedStep(gates, PAGE, BUDGET // PAGE, rows, PLACES))
    torch.testing.assert_close(mixed[1], full[1])
    torch.testing.assert_close(mixed[0, :BUDGET], full[0, :BUDGET])
    assert (mixed[0, BUDGET:] - full[0, BUDGET:]).abs().max() > 1e-2
    nobody, _ = model(ids, paged=PagedStep(gates, PAGE, BUDGET // PAGE, None, PLACES))
    torch.testing.assert_close(nobody, full)


def test_the_model_learns_through_the_pattern_and_the_gates_beside_it():
    """The model's gradient is the loss's alone, the gates' is their own divergence's."""
    model = wide_model()
    gates, ids = own_gates.begin(model, PAGED), ids_of(2)
    rows = torch.tensor([True, True])
    with torch.enable_grad():
        step = PagedStep(gates, PAGE, BUDGET // PAGE, rows, PLACES)
        logits, _ = model(ids, paged=step)
        torch.stack(step.losses).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(gate.key.grad.abs().max() > 0 for gate in gates)
    for gate in gates:
        gate.zero_grad()
    with torch.enable_grad():
        step = PagedStep(gates, PAGE, BUDGET // PAGE, rows, PLACES)
        logits, _ = model(ids, paged=step)
        logits.square().mean().backward()
    assert all(layer.self_attn.v_proj.weight.grad.abs().max() > 0 for layer in model.layers)
    assert all(gate.key.grad is None for gate in gates)


def test_rows_are_paged_from_their_share_of_the_steps_on():
    model = TurboSparse(SIZES)
    rows = [((ids_of(4).short().numpy(), torch.ones(4, LENGTH).half().numpy()), 1.0)]
    data = Data(rows, torch.device("cpu"))
    recipe = dataclasses.replace(PAGED, paged_from=0.5, paged_share=1.0)
    run = Optimization(model, (data, data), recipe, False, own_gates.begin(model, recipe))
    assert run._paged(4, 0.49).rows is None
    assert run._paged(4, 0.5).rows.all()
    assert run._paged(4, 0.5).budget == 6


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder whose model already had gates, of other weights."""
    out = tmp_path_factory.mktemp("paged") / "tiny"
    (out / "attention_gates").mkdir(parents=True)
    (out / "attention_gates" / "stale.txt").write_text("of other weights")
    data = write_data(tmp_path_factory.mktemp("data"))
    text = "".join(f"The {i} is long .\n" for i in range(60))
    write(data, "wikitext2.test.txt.gz", text)
    with torch.enable_grad():
        train.train(data, out, SIZES, PAGED, compiled=False, processes=1)
    train.write_card(out, [])
    return out


def test_the_model_carries_what_it_was_trained_with(trained):
    folder = trained / "attention_gates"
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    config = json.loads((folder / "config.json").read_text())
    assert (config["rank"], config["page_size"]) == (8, PAGE)
    assert config["quality"]["window"] == LENGTH
    assert config["quality"]["gate"].keys() == {str(BUDGET)}
    record = json.loads((trained / "training.json").read_text())
    assert record["recipe"]["page_budget"] == BUDGET
    assert record["training"]["gates_off"] > 0
    card = (trained / "README.md").read_text()
    assert f"read only {BUDGET} tokens of their context" in " ".join(card.split())
    recall = config["quality"]["gate"][str(BUDGET)]["recall"]
    assert f"| {BUDGET} | gate | {recall:.1%} |" in card.partition("## Sparse attention")[2]


def test_it_is_served_with_its_gates_and_computes_what_was_trained(trained):
    core = make(trained, attention="gate", page_budget=BUDGET)
    prompt = ids_of(1)[0].tolist()
    core.add(greedy("gate", prompt, 8, pages=PageChoice(BUDGET, gated=True)))
    assert len(run_engine(core).tokens["gate"]) == 8
    decoder = load(trained, torch.device("cpu"), torch.float32).decoder
    served = Identity.of(trained, decoder.config)
    info = sparsity_gates.attach(decoder, trained / "attention_gates", PAGE, served)
    assert info.rank == 8
    model = TurboSparse(SIZES).eval()
    weights = load_file(trained / "model.safetensors")
    model.load_state_dict({n.removeprefix("model."): t.float() for n, t in weights.items()})
    gates = [sparsity_gates.attention_of(layer).gate for layer in decoder.layers]
    assert all(gate.key.abs().max() > 0 for gate in gates), "they have learned"
    ids, everyone = ids_of(1), torch.tensor([True])
    step = PagedStep(gates, PAGE, BUDGET // PAGE, everyone, PLACES)
    (want,), _ = model(ids, paged=step)
    reads = Reads(BUDGET // PAGE, PAGE, gated=True)
    got, full = (observe(decoder, ids[0], reads=some).logits for some in (reads, None))
    assert (got - full).abs().max() > 0
    agree = (got - want).abs().amax(-1) < 1e-3
    assert agree.float().mean() > 0.9


@pytest.mark.parametrize("budget", [15, LENGTH, -1])
def test_a_budget_that_cannot_be_is_refused(tmp_path, budget):
    recipe = dataclasses.replace(PAGED, page_budget=budget)
    with pytest.raises(ModelError, match=f"--page-budget: {budget} is not 16 to less than"):
        train.train(tmp_path, tmp_path / "out", SIZES, recipe, compiled=False, processes=1)
