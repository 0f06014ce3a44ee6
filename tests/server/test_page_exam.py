"""`turbosparse evaluate --page-budgets`: what reading a part of the context costs, on a text and in
an exam."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import echo_engine
import pytest
import torch
from safetensors.torch import save_file
from test_evaluate import SHAPE, TEXT, Page, ask, evaluate, refused

from turbosparse.models.identity import Identity
from turbosparse.models.load import load
from turbosparse.models.tools import report, verdict
from turbosparse.models.tools.evaluation import PagePlan
from turbosparse.models.tools.synthetic import make
from turbosparse.server.commands import page_exam
from turbosparse.server.commands.exam import Answered, Question
from turbosparse.server.commands.page_plan import Pages, server_flags

BUDGETS = ("64", "96", "128")  # of a window of 128: the last reads all


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, gates for it that know nothing, and a text."""
    folder = tmp_path_factory.mktemp("sparse")
    make(folder / "model", "bamboo", SHAPE, density=0.3)
    write_gates(folder / "gates", folder / "model")
    (folder / "text.txt").write_text(TEXT)
    return folder


def write_gates(folder: Path, model: Path, page_size: int = 16) -> Path:
    config = load(model, torch.device("cpu"), torch.float32).decoder.config
    generator = torch.Generator().manual_seed(2)
    width = 2 * config.head_dim
    shapes = {"query": (SHAPE.heads, 4, width), "key": (SHAPE.kv_heads, width, 4)}
    tensors = {
        f"layers.{i}.{name}": 0.3 * torch.randn(shape, generator=generator)
        for i in range(SHAPE.layers)
        for name, shape in shapes.items()
    }
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    said = {"kind": "attention-gates", "rank": 4, "page_size": page_size}
    (folder / "config.json").write_text(json.dumps(said | Identity.of(model, config).json()))
    return folder


@pytest.fixture(scope="module")
def measured(folder, tmp_path_factory):
    flags = ("--text", folder / "text.txt", "--tokens", 300, "--page-budgets", "128,64,96,64")
    gates = ("--attention-gates", folder / "gates")
    return evaluate(folder / "model", *flags, *gates, out=tmp_path_factory.mktemp("out"))


def test_the_more_is_read_the_more_is_recalled_and_all_is_exact(measured):
    found = measured[0]["attention"]["text"]
    assert (found["window"], found["page_size"], found["num_tokens"]) == (128, 16, 3 * 127)
    kinds = verdict.choices_on(found)
    assert list(kinds) == ["bound", "gate"]
    assert tuple(found["best"]) == BUDGETS
    for costs in kinds.values():
        assert tuple(costs) == BUDGETS
        few, more, every = costs.values()
        assert few["recall"] < more["recall"] < every["recall"] == pytest.approx(1, abs=1e-6)
        assert few["nats"] > more["nats"] > every["nats"] == pytest.approx(0, abs=1e-6)
        assert few["same_best"] <= 1 == every["same_best"]
        assert few["perplexity_change"] != 0 == pytest.approx(every["perplexity_change"], abs=1e-6)
        for budget, cost in costs.items():
            assert found["perplexity"] * (1 + cost["perplexity_change"]) == pytest.approx(
                cost["perplexity"]
            )
            layers = zip(
                cost["recall_by_layer"], found["best"][budget]["recall_by_layer"], strict=True
            )
            assert all(recall <= best + 1e-6 for recall, best in layers)
    assert kinds["bound"]["64"]["nats"] != kinds["gate"]["64"]["nats"]


def test_it_stands_beside_the_exact_run_that_everything_else_is_held_against(measured):
    record = measured[0]
    assert record["agrees"] is True
    assert [run["name"] for run in record["text"]["runs"]] == ["exact", "dense"]
    exact = record["text"]["runs"][0]["perplexity"]
    assert record["attention"]["text"]["perplexity"] == pytest.approx(exact, rel=1e-5)
    assert record["attention"]["exam"] is None


def test_the_page_shows_every_number_and_says_that_it_is_approximate(measured):
    record, html = measured
    page, found = Page(html), record["attention"]["text"]
    assert report.page(record) == html
    assert "Sparse attention, approximate" in page.text
    assert "Sparse attention by gate, which is approximate, reading 64 to 128 tokens" in page.text
    drawn = page.plots[-3:]
    labels = ["Attention recalled", "Change in perplexity", "Divergence"]
    assert [plot.get("aria-label") for plot in drawn] == [f"{x} against the budget" for x in labels]
    for plot in drawn:
        dots = [dot.findtext("title").split(" tokens")[0] for dot in plot.iter("circle")]
        assert dots == [f"{kind}, {budget}" for kind in ("bound", "gate") for budget in BUDGETS]
    for costs in verdict.choices_on(found).values():
        for cost in costs.values():
            shares = (cost["recall"], cost["same_best"], *cost["recall_by_layer"])
            for said in (*map(verdict.percent, shares), verdict.change(cost["perplexity_change"])):
                assert said in page.text


def test_separate_predictors_have_no_part_in_it(folder, measured, tmp_path):
    """Neurons and pages are chosen apart: all of the neurons are computed here."""
    predictors = tmp_path / "predictors"
    predictors.mkdir()
    for i in range(SHAPE.layers):
        fc1, fc2 = torch.randn(16, SHAPE.hidden), torch.randn(SHAPE.neurons, 16)
        torch.save({"fc1.weight": fc1, "fc2.weight": fc2}, predictors / f"model_{i}.pt")
    flags = ("--text", folder / "text.txt", "--tokens", 300, "--page-budgets", 64)
    beside = ("--attention", "bound", "--predictors", predictors, "--thresholds", 1)
    record, _ = evaluate(folder / "model", *flags, *beside, out=tmp_path / "out")
    alone = measured[0]["attention"]["text"]["bound"]["64"]
    found = verdict.choices_on(record["attention"]["text"])
    assert found.keys() == {"bound"}
    assert found["bound"]["64"]["nats"] == pytest.approx(alone["nats"], rel=1e-3)
    assert found["bound"]["64"]["recall"] == pytest.approx(alone["recall"], rel=1e-3)


def test_the_gates_that_a_model_carries_are_taken(folder, measured, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "model")
    shutil.copytree(folder / "gates", tmp_path / "model" / "attention_gates")
    flags = ("--text", folder / "text.txt", "--tokens", 300, "--page-budgets", 64)
    record, _ = evaluate(tmp_path / "model", *flags, out=tmp_path / "out")
    given = measured[0]["attention"]["text"]["gate"]["64"]
    assert record["attention"]["text"]["gate"]["64"]["nats"] == pytest.approx(given["nats"])
    (tmp_path / "model" / "attention_gates" / "config.json").write_text("{")
    bound, _ = evaluate(tmp_path / "model", *flags, "--attention=bound", out=tmp_path / "bound")
    assert list(verdict.choices_on(bound["attention"]["text"])) == ["bound"]


def test_pages_of_another_size_are_as_asked_and_its_own_gates_left_out(folder, measured, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "model")
    shutil.copytree(folder / "gates", tmp_path / "model" / "attention_gates")
    flags = ("--text", folder / "text.txt", "--tokens", 300, "--page-budgets", "32,64")
    smaller = ("--page-size", 8)
    record, html = evaluate(tmp_path / "model", *flags, *smaller, out=tmp_path / "out")
    found = record["attention"]["text"]
    assert (found["page_size"], list(verdict.choices_on(found))) == (8, ["bound"])
    in_16 = measured[0]["attention"]["text"]
    assert found["perplexity"] == pytest.approx(in_16["perplexity"], rel=1e-5), "of all"
    assert found["best"]["64"]["recall"] > in_16["best"]["64"]["recall"], "a finer choice"
    assert "On the text, in pages of 8 tokens," in Page(html).text
    assert "reading 32 to 64 tokens in pages of 8: " in record["verdict"][-1]
    gates = write_gates(tmp_path / "gates", folder / "model", page_size=8)
    given = (*smaller, "--attention-gates", gates, "--attention", "gate")
    record, _ = evaluate(tmp_path / "model", *flags, *given, out=tmp_path / "given")
    assert list(verdict.choices_on(record["attention"]["text"])) == ["gate"]


def test_its_own_gates_for_pages_of_another_size_are_none_to_who_asks(folder, tmp_path, capsys):
    shutil.copytree(folder / "model", tmp_path / "model")
    shutil.copytree(folder / "gates", tmp_path / "model" / "attention_gates")
    flags = ("--text", folder / "text.txt", "--page-budgets", 64, "--page-size", 8)
    asked = (*flags, "--attention", "gate", "--out", tmp_path / "out")
    said = refused(capsys, tmp_path / "model", *asked)
    assert "this model carries none for pages of 8 tokens" in said


def test_a_server_of_ours_has_pages_of_the_size_that_was_asked_for():
    for size in ("8", "32"):
        found = server_flags(Pages(exam=PagePlan(("bound",), (128, 256), int(size))))
        assert found[found.index("--page-size") + 1] == size
        assert found[found.index("--page-budget") + 1] == "128"
    assert server_flags(Pages(text=PLAN)) == []


def long_exam(folder: Path) -> Path:
    """Two questions that a budget of 64 covers, one that 128 does, one that none does."""
    questions = [
        ask("short", "say:it is 19", "19", "number"),
        ask("keys", "say:the key is 7", "7", "number"),
        ask("keys", f"say:{'word ' * 20}8", "8", "number"),
        ask("keys", f"say:{'word ' * 60}9", "10", "number"),
    ]
    (folder / "exam.jsonl").write_text("\n".join(map(json.dumps, questions)) + "\n")
    return folder / "exam.jsonl"


def test_an_exam_is_asked_again_where_the_budget_does_not_cover_it(server, folder, tmp_path):
    before = server.client.get("/metrics").text
    flags = ("--exam", long_exam(tmp_path), "--url", server.url, "--page-budgets", "64,500")
    record, html = evaluate(folder / "model", *flags, out=tmp_path / "out")
    found = record["attention"]["exam"]
    assert found["tasks"].keys() == {"keys"}
    assert found["num_covered_tasks"] == 1
    assert found["tasks"]["keys"]["asked"] == 3
    assert (found["page_size"], found["kinds"].keys()) == (16, {"bound"})
    scores = {budget: tasks["keys"] for budget, tasks in found["kinds"]["bound"].items()}
    assert {b: (s["asked"], s["right"], s["covered"]) for b, s in scores.items()} == {
        "64": (3, 2, 1),
        "500": (3, 2, 2),
    }
    assert [m["expected"] for m in scores["500"]["mistakes"]] == ["10"]
    asked = requests(server.client.get("/metrics").text) - requests(before)
    assert asked == 2 * 4 + 2 + 1, "in two functions, then those that are longer than the budget"
    page = Page(html)
    assert [plot.get("aria-label") for plot in page.plots] == [
        "Right answers of keys against the budget"
    ]
    assert "nor was any of 1 other task." in page.text
    assert "In the exam, in pages of 16 tokens," in page.text
    assert "2, 2 of 3 answers are right; 2 are with all of the context" in page.text


def test_the_pages_of_a_server_are_its_own_beside_a_text(server, folder, tmp_path):
    text = ("--text", folder / "text.txt", "--tokens", 130, "--page-size", 8)
    exam = ("--exam", long_exam(tmp_path), "--url", server.url, "--page-budgets", 64)
    found = evaluate(folder / "model", *text, *exam, out=tmp_path / "out")[0]["attention"]
    assert (found["text"]["page_size"], found["exam"]["page_size"]) == (8, 16)


def requests(metrics: str) -> float:
    """Answered so far, for whatever reason they ended."""
    lines = [x for x in metrics.splitlines() if x.startswith("turbosparse_request_success_total{")]
    return sum(float(line.split()[-1]) for line in lines)


@dataclass
class Reader:
    """In a server's place: answers what it is asked, and keeps what that was."""

    asked: list[tuple[list[str], dict]]

    async def take(self, url, key, questions, fields):
        self.asked.append(([q.expected for q in questions], fields["sparsity"]))
        wrong = fields["sparsity"].get("page_budget") == 64
        return [answered(q, right=not wrong) for q in questions]


def answered(question: Question, *, right: bool = True) -> Answered:
    return Answered(question, "said", right, num_tokens=int(question.expected))


def question(num_tokens: int, task: str = "keys") -> Question:
    return Question(task, [{"role": "user", "content": "?"}], [], str(num_tokens), "exact")


ANSWERS = [answered(question(n)) for n in (60, 64, 65, 256, 900)]
ALL = [answer.question.expected for answer in ANSWERS]
PLAN = PagePlan(("bound", "gate"), (64, 256), 16)


@pytest.mark.parametrize(
    ("offered", "full", "few", "more"),
    [
        ({"mode": "full", "beyond": 0}, [], ["65", "256", "900"], ["900"]),
        ({"mode": "full", "beyond": 300}, [], ["900"], ["900"]),  # read in full up to there
        ({"mode": "bound", "beyond": 0}, ALL, ["65", "256", "900"], ["900"]),
    ],
)
def test_who_is_asked_again_and_with_what(monkeypatch, offered, full, few, more):
    reader = Reader([])
    monkeypatch.setattr(page_exam, "take", reader.take)
    found = page_exam.ask_again("", "", {"attention": offered}, ANSWERS, PLAN)
    wanted = [(full, {"attention": "full"})] if full else []
    for kind in ("bound", "gate"):
        for budget, expected in ((64, few), (256, more)):
            fields = {"attention": kind, "page_budget": budget, "page_share": 1.0}
            wanted.append((expected, fields))
            scores = found["kinds"][kind][budget]["keys"]
            assert scores["covered"] == 5 - len(expected)
            assert scores["right"] == (5 - len(few) if budget == 64 else 5)
    assert reader.asked == wanted
    assert found["tasks"] == {"keys": {"asked": 5, "right": 5, "longest": 900}}


def test_an_exam_without_long_contexts_asks_nothing(monkeypatch):
    reader = Reader([])
    monkeypatch.setattr(page_exam, "take", reader.take)
    answers = [answered(question(n, task)) for task in "ab" for n in (10, 64)]
    info = {"attention": {"mode": "full", "beyond": 0}}
    found = page_exam.ask_again("", "", info, answers, PLAN)
    assert all(questions == [] for questions, _ in reader.asked)
    assert (found["tasks"], found["num_covered_tasks"]) == ({}, 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--page-budgets", 48), "--page-budgets: 48 is not 64 to the window 128"),
        (("--page-budgets", "64,129"), "--page-budgets: 129 is not 64 to the window 128"),
        (("--page-budgets", "64,112", "--window", 96), "112 is not 64 to the window 96"),
        (("--page-budgets", "few"), "--page-budgets='few' is not a number"),
        (("--page-budgets", 64, "--attention", "gate"), "--attention=gate needs --attention-gates"),
        (("--page-budgets", 64, "--attention", "oracle"), "'oracle' is not one of bound, gate"),
        (("--attention", "bound"), "--attention is tried at --page-budgets, and none is given"),
        (("--attention-gates", "x"), "--attention-gates is tried at --page-budgets"),
        (("--page-size", 16), "--page-size is tried at --page-budgets, and none is given"),
        (("--page-budgets", 64, "--page-size", 24), "--page-size=24 is not one of 4, 8, 16"),
        (("--page-budgets", 64, "--page-size", 32), "64 is not 128 to the window 128"),
        (("--page-budgets", 64, "--attention-gates", "/none"), "there is no directory /none"),
    ],
)
def test_what_cannot_be_tried_is_refused_by_its_flag(folder, tmp_path, capsys, flags, message):
    text = ("--text", folder / "text.txt", "--out", tmp_path / "out")
    assert message in refused(capsys, folder / "model", *text, *flags)


def test_gates_of_something_else_are_refused_before_anything_is_measured(folder, tmp_path, capsys):
    make(tmp_path / "twin", "bamboo", SHAPE, density=0.3, seed=5)
    flags = ("--text", folder / "text.txt", "--page-budgets", 64, "--out", tmp_path / "out")
    for gates, message in (
        (write_gates(tmp_path / "other", tmp_path / "twin"), "the same shape, but other weights"),
        (write_gates(tmp_path / "small", folder / "model", page_size=8), "pages of 8 tokens"),
    ):
        said = refused(capsys, folder / "model", *flags, "--attention-gates", gates)
        assert said.startswith("--attention-gates: ")
        assert message in said
    assert list((tmp_path / "out").iterdir()) == []


def test_what_a_server_cannot_be_asked_is_refused(server, folder, tmp_path, capsys, monkeypatch):
    exam = ("--exam", long_exam(tmp_path), "--url", server.url, "--out", tmp_path / "out")
    for flags, message in (
        (("--page-budgets", 2001), "--page-budgets: 2001 is not 64 to the context 2000"),
        (("--page-budgets", 64, "--attention", "gate"), "the server at --url has no gates"),
        (("--page-budgets", 64, "--attention-gates", "x"), "--url has gates of its own, if any"),
        (("--page-budgets", 64, "--page-size", 16), "the server at --url has pages of its own"),
    ):
        assert message in refused(capsys, folder / "model", *exam, *flags)
    full = replace(server.service.engine.info, attention=None)
    monkeypatch.setattr(server.service.engine, "info", full)
    said = refused(capsys, folder / "model", *exam, "--page-budgets", 64)
    assert "has to be started with --page-budget" in said
    lm_eval = ("--url", server.url, "--lm-eval", "x", "--page-budgets", 64)
    assert "--page-budgets are tried on a --text or in an --exam" in refused(
        capsys, folder / "model", *lm_eval
    )


@pytest.mark.slow
def test_an_exam_is_asked_of_a_server_with_gates_that_it_starts(folder, tmp_path):
    model = tmp_path / "model"
    make(model, "bamboo", replace(SHAPE, positions=2000), density=0.3)
    write_gates(tmp_path / "gates", model, page_size=8)
    echo_engine.TOKENIZER.save(str(model / "tokenizer.json"))
    settings = {"chat_template": echo_engine.CHAT_TEMPLATE, "bos_token": "<s>"}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    flags = ("--exam", long_exam(tmp_path), "--page-budgets", "64,128", "--page-size", 8)
    gates = ("--attention-gates", tmp_path / "gates")
    record, _ = evaluate(model, *flags, *gates, out=tmp_path / "out")
    found = record["attention"]["exam"]
    assert (found["page_size"], found["kinds"].keys()) == (8, {"bound", "gate"})
    assert found["tasks"]["keys"]["asked"] == 3
