"""`turbosparse evaluate` as its users run it: a model of two layers, a page and its numbers."""

import json
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from test_examples import environment

from turbosparse.models.tools import evaluation, report, verdict
from turbosparse.models.tools.grading import is_right
from turbosparse.models.tools.shapes import Shape
from turbosparse.models.tools.synthetic import make
from turbosparse.server.cli import main
from turbosparse.server.commands.exam import said_in
from turbosparse.server.commands.lm_eval import read_results

SHAPE = Shape(hidden=64, layers=2, neurons=128, vocab=300, heads=2, kv_heads=1, positions=128)
TEXT = "".join(f"The {word} of the harbour.\n" for word in ("bridge", "lights", "museum")) * 20
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A checkpoint of each kind, by family."""
    folder = tmp_path_factory.mktemp("models")
    for family in ("turbosparse-mistral", "bamboo", "mistral"):
        make(folder / family, family, SHAPE, density=0.3)
    return folder


def evaluate(*arguments: object, out: Path) -> tuple[dict, str]:
    """What the command leaves: the numbers, and the page."""
    assert main(["evaluate", *map(str, arguments), "--threads", "1", "--out", str(out)]) == 0
    names = sorted(file.name for file in out.iterdir())
    assert names == ["evaluation.html", "evaluation.json"]
    return json.loads((out / "evaluation.json").read_text()), (out / "evaluation.html").read_text()


def runs_of(record: dict) -> dict[str, dict]:
    return {run["name"]: run for run in record["text"]["runs"]}


class Page(HTMLParser):
    """Its text, its plots, and that what is opened is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []
        self.plots = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]

    def handle_starttag(self, tag, attrs):
        assert not {"src", "href"} & dict(attrs).keys(), "the page is whole by itself"
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_model_with_its_own_predictors_is_held_against_itself(models, text, tmp_path):
    flags = ("--text", text, "--window", 64, "--tokens", 400, "--thresholds=-1,1")
    record, html = evaluate(models / "turbosparse-mistral", *flags, out=tmp_path / "out")
    runs = runs_of(record)
    assert list(runs) == ["exact", "dense", "mask off", "threshold -1", "threshold 1"]
    assert record["agrees"] is True
    assert abs(runs["dense"]["agreement"]["nats"]) < 1e-6
    assert runs["mask off"]["agreement"]["nats"] > 1e-4
    kept = [
        runs[n]["skipping"]["kept"] for n in ("mask off", "threshold -1", "exact", "threshold 1")
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == 1
    assert kept[2] == pytest.approx(0.3, abs=0.05)
    assert len(runs["exact"]["skipping"]["layers"]) == 2
    assert list(runs["exact"]["skipping"]["union"]) == ["1", "2", "4"]
    assert record["model"]["predictors"] == "own"
    assert record["text"]["num_tokens"] == runs["exact"]["num_tokens"] == 7 * 63
    assert record["text"]["continuations"]["dense"]["common"] == 1
    assert record["facts"]["command"].startswith("turbosparse evaluate ")
    page = Page(html)
    assert record["verdict"][0].startswith("Skipping changes nothing")
    for said in record["verdict"]:
        assert said in page.text
    for run in runs.values():
        assert verdict.perplexity(run["perplexity"]) in page.text
    for layer in runs["exact"]["skipping"]["layers"]:
        assert f"{layer['recall']:.1%}" in page.text
    assert len(page.plots) == 4
    bars = page.plots[0].findall("rect")
    assert [f"{runs['exact']['skipping']['layers'][i]['kept']:.1%} kept" for i in (0, 1)] == [
        bar.findtext("title").split(": ")[1].split(",")[0] for bar in bars
    ]


def write_predictors(folder: Path) -> Path:
    """Predictors that know nothing."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    for i in range(SHAPE.layers):
        fc1 = torch.randn(16, SHAPE.hidden, generator=generator)
        fc2 = torch.randn(SHAPE.neurons, 16, generator=generator)
        torch.save({"fc1.weight": fc1, "fc2.weight": fc2}, folder / f"model_{i}.pt")
    return folder


def test_separate_predictors_that_know_nothing_show(models, text, tmp_path):
    predictors = write_predictors(tmp_path / "predictors")
    flags = ("--text", text, "--window", 64, "--tokens", 130, "--predictors", predictors)
    record, html = evaluate(models / "bamboo", *flags, out=tmp_path / "out")
    runs = runs_of(record)
    assert {"exact", "dense", "approximate", "threshold -2", "threshold 1"} <= runs.keys()
    assert "mask off" not in runs
    assert record["agrees"] is True
    found = runs["approximate"]
    assert found["agreement"]["nats"] > 1e-3
    assert 0.2 < found["skipping"]["recall"] < 0.8
    assert runs["exact"]["skipping"]["recall"] == 1
    assert record["model"]["predictors"] == "separate"
    assert record["model"]["approximation"] in Page(html).text
    assert any("With the separate predictors the perplexity is" in s for s in record["verdict"])


def test_models_without_predictors(models, text, tmp_path):
    flags = ("--text", text, "--window", 64, "--tokens", 130)
    record, _ = evaluate(models / "bamboo", *flags, out=tmp_path / "relu")
    assert list(runs_of(record)) == ["exact", "dense"]
    assert re.match(r"\d\d\.\d% of the neurons are active", record["verdict"][1])
    record, html = evaluate(models / "mistral", *flags, out=tmp_path / "silu")
    assert list(runs_of(record)) == ["exact"]
    assert record["agrees"] is None
    assert record["verdict"][0].startswith("Nothing is skipped: silu")
    assert Page(html).plots == []


def test_a_disagreement_is_the_first_thing_said(models, text, tmp_path, monkeypatch, capsys):
    """Skipping that changes the function is a defect, and an exit status."""
    honest = evaluation.runs_of

    def broken(model, thresholds):
        exact, dense = honest(model, thresholds)[:2]
        layer = model.decoder.layers[0].get_submodule("ffn")
        layer.predictor.threshold = 0.5  # what is kept depends on who asks: dense says 0
        return [exact, evaluation.Run("dense", dense.decoder, threshold=0.0, skips=False)]

    monkeypatch.setattr(evaluation, "runs_of", broken)
    asked = [
        "evaluate",
        str(models / "turbosparse-mistral"),
        "--text",
        str(text),
        "--tokens",
        "130",
    ]
    assert main([*asked, "--window", "64", "--threads", "1", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith("Exact and dense DISAGREE")
    assert 'class="verdict bad"' in (tmp_path / "evaluation.html").read_text()


@pytest.mark.parametrize(
    ("dtype", "nats", "logits", "agrees", "said"),
    [
        ("float32", 0.0, 0.0, True, "agree to the last bit, with"),
        ("float32", -3e-8, 1e-5, True, "agree within 1e-06 nats a token"),
        ("float32", 2e-4, 0.1, False, "DISAGREE, by 0.0002 nats"),
        ("bfloat16", 2e-4, 0.1, True, "agree within 0.0002 nats a token"),
        ("bfloat16", 0.05, 2.0, False, "DISAGREE, by 0.05 nats"),
    ],
)
def test_rounding_is_no_disagreement(dtype, nats, logits, agrees, said):
    exact = {"name": "exact", "skipping": None}
    agreement = {"nats": nats, "logits": logits, "same_best": 1.0}
    dense = {"name": "dense", "num_tokens": 9, "agreement": agreement}
    model = {"dtype": dtype, "predictors": None}
    record = {"model": model, "text": {"runs": [exact, dense]}, "exam": {}, "tasks": {}}
    record["attention"] = {"text": None, "exam": None}
    assert verdict.agrees(record) is agrees
    assert said in verdict.verdict(record)[0]


def ask(task: str, text: str, expected: str, grade: str, **more: object) -> dict:
    messages = [{"role": "user", "content": text}]
    return {"task": task, "messages": messages, "expected": expected, "grade": grade} | more


def test_an_exam_is_asked_of_a_server_in_every_function_that_it_computes(server, models, tmp_path):
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    call = {"name": "weather", "arguments": {"city": "Oslo"}}
    questions = [
        ask("sums", "say:it is 19", "19", "number"),
        ask("sums", "say:it is 20", "19", "number"),
        ask("words", "say:Good Day", "good", "contains"),
        ask(
            "tools",
            f"say:<tool_call>\n{json.dumps(call)}\n</tool_call>",
            json.dumps(call),
            "tool_call",
            tools=[tool],
        ),
    ]
    folder = tmp_path / "exam"
    folder.mkdir()
    for name, some in (("a", questions[:2]), ("b", questions[2:])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)) + "\n")
    flags = ("--exam", folder, "--url", server.url)
    record, html = evaluate(models / "turbosparse-mistral", *flags, out=tmp_path / "out")
    assert record["exam"].keys() == {"exact", "mask off"}
    for scores in record["exam"].values():
        assert {t: (s["right"], s["asked"]) for t, s in scores.items()} == {
            "sums": (1, 2),
            "words": (1, 1),
            "tools": (1, 1),
        }
        (mistake,) = scores["sums"]["mistakes"]
        assert (mistake["expected"], mistake["said"]) == ("19", "it is 20")
    assert record["text"] is None
    assert "it is 20" in Page(html).text
    assert "Exam, mask off: 3 of 4 answers are right (75.0%)." in Page(html).text


@pytest.mark.parametrize(
    ("grade", "expected", "content", "right"),
    [
        ("contains", "Paris", "It is paris.", True),
        ("contains", "Paris", "It is Rome.", False),
        ("exact", "c b a", " c b a\n", True),
        ("exact", "c b a", "c b a.", False),
        ("number", "-12", "7 less 19 is -12.", True),
        ("number", "1200", "That makes 1,200 in all", True),
        ("number", "2.5", "2.50", True),
        ("number", "12", "12, or was it 13", False),
        ("number", "12", "no idea", False),
        ("json", '{"a": 1, "b": [2]}', '{"b":[2],"a":1}', True),
        ("json", '{"a": 1}', '{"a": 1', False),
        ("tool_call", '{"name": "f", "arguments": {}}', '{"name": "f", "arguments": {}}', False),
    ],
)
def test_an_answer_is_graded(grade, expected, content, right):
    assert is_right(grade, expected, said_in({"content": content})) is right


@pytest.mark.parametrize(
    ("call", "right"),
    [
        ({"name": "f", "arguments": '{"y": 2, "x": 1}'}, True),
        ({"name": "f", "arguments": '{"x": 1}'}, False),
        ({"name": "g", "arguments": '{"x": 1, "y": 2}'}, False),
        ({"name": "f", "arguments": "{"}, False),
    ],
)
def test_a_call_is_graded_by_name_and_arguments(call, right):
    expected = '{"name": "f", "arguments": {"x": 1, "y": 2}}'
    answer = {"content": None, "tool_calls": [{"function": call}]}
    assert is_right("tool_call", expected, said_in(answer)) is right
    twice = said_in({"tool_calls": [{"function": call}] * 2})
    assert not is_right("tool_call", expected, twice)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "has no question"),
        ("{", "line 1: not JSON"),
        ("[]", "line 1: not an object"),
        ({"task": 1}, "line 1: task must be a string"),
        ({"grade": "luck"}, "line 1: grade='luck' is not one of contains, exact"),
        ({"messages": []}, "line 1: messages is empty"),
        ({"messages": "hi"}, "line 1: messages must be a list of objects"),
        ({"prompt": "hi"}, "line 1: prompt is not a field"),
    ],
)
def test_a_question_that_cannot_be_read_is_named(tmp_path, capsys, line, message):
    if isinstance(line, dict):
        line = json.dumps(ask("t", "say:x", "x", "exact") | line)
    (tmp_path / "exam.jsonl").write_text(line)
    assert main(["evaluate", "--exam", str(tmp_path / "exam.jsonl")]) == 1
    said = capsys.readouterr().err
    assert "--exam: " in said
    assert message in said


def test_an_exam_that_cannot_be_read_is_named(tmp_path, capsys):
    (tmp_path / "latin.jsonl").write_bytes(b"\xe9")
    assert "latin.jsonl cannot be read" in refused(capsys, "--exam", tmp_path)
    assert "none cannot be read" in refused(capsys, "--exam", tmp_path / "none")
    (tmp_path / "latin.jsonl").unlink()
    assert "has no question" in refused(capsys, "--exam", tmp_path)


def refused(capsys, *arguments: object) -> str:
    assert main(["evaluate", *map(str, arguments)]) == 1
    return capsys.readouterr().err.removeprefix("turbosparse: error: ")


def test_what_cannot_be_measured_is_refused_by_name(models, text, tmp_path, capsys):
    own, out = models / "turbosparse-mistral", ("--out", tmp_path / "out", "--threads", 1)
    short, latin, empty = (tmp_path / name for name in ("short.txt", "latin.txt", "empty.txt"))
    short.write_text("abc")
    latin.write_bytes("caf\xe9".encode("latin-1") * 99)
    empty.write_text("")
    assert "nothing to measure" in refused(capsys, own)
    assert "--text: there is no file" in refused(capsys, own, "--text", tmp_path / "none.txt")
    for path, message in (
        (short, "has 3 tokens, fewer than one window"),
        (latin, "line 1, is not UTF-8"),
        (empty, "has 0 tokens"),
    ):
        said = refused(capsys, own, "--text", path, *out)
        assert said.startswith(f"--text: {path}")
        assert message in said
    window = ("--text", text, "--window", 129, *out)
    assert "--window=129 is more than the model's 128" in refused(capsys, own, *window)
    swept = ("--text", text, "--window", 64, "--thresholds", 1, *out)
    assert "--thresholds: this model has no predictors" in refused(
        capsys, models / "bamboo", *swept
    )
    assert "--thresholds: nothing can be skipped" in refused(capsys, models / "mistral", *swept)
    (tmp_path / "file").write_text("")
    assert "--out: " in refused(capsys, own, "--text", text, "--out", tmp_path / "file")
    alone = ("--text", text, "--url", "http://127.0.0.1:9")
    assert "--url is asked for an --exam" in refused(capsys, own, *alone)
    config = json.loads((own / "config.json").read_text()) | {"model_type": "gpt2"}
    shutil.copytree(own, tmp_path / "gpt2")
    (tmp_path / "gpt2" / "config.json").write_text(json.dumps(config))
    assert "model_type='gpt2'" in refused(capsys, tmp_path / "gpt2", "--text", text, *out)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_harness_is_told_with_how_to_install_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "pip install 'lm-eval[api]'" in refused(capsys, "--lm-eval", "colours")


def test_the_harness_results_are_read():
    results = {
        "results": {
            "colours": {"alias": "colours", "acc,none": 0.67, "acc_stderr,none": 0.1},
            "sums": {
                "alias": "sums",
                "exact_match,strict": 0.5,
                "exact_match_stderr,strict": "N/A",
            },
        }
    }
    assert read_results(results) == {
        "colours": {"acc": 0.67, "acc_stderr": 0.1},
        "sums": {"exact_match,strict": 0.5},
    }


@pytest.mark.slow
def test_tasks_run_through_the_server(server, checkpoint, models, tmp_path, monkeypatch):
    binaries = environment(tmp_path / "venv", "lm-eval[api]", "transformers")
    monkeypatch.setenv("PATH", str(binaries), prepend=":")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copy(checkpoint / "tokenizer.json", models / "mistral" / "tokenizer.json")
    monkeypatch.chdir(EXAMPLES / "lm_eval")
    flags = ("--lm-eval", "colours", "--include-path", ".", "--url", server.url)
    record, html = evaluate(models / "mistral", *flags, out=tmp_path / "out")
    assert 0 <= record["tasks"]["exact"]["colours"]["acc"] <= 1
    assert "colours" in Page(html).text


def test_a_page_is_made_of_the_file_alone(models, text, tmp_path):
    flags = ("--text", text, "--window", 64, "--tokens", 130, "--thresholds", 1)
    record, html = evaluate(models / "turbosparse-mistral", *flags, out=tmp_path / "out")
    assert report.page(record) == html
    record["model"]["name"] = "<script>"
    assert "<h1>&lt;script&gt;</h1>" in report.page(record)
