"""Finding a model, its chat template and its makers' defaults."""

import json

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

from turbosparse.server import checkpoint
from turbosparse.server.chat_template import TemplateRefused, read_chat_template
from turbosparse.server.checkpoint import CheckpointError, Defaults, locate, read_defaults
from turbosparse.server.tokenizer import read_tokenizer

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Yes?"}
# As published TurboSparse templates do: the assistant's turn is opened after every user turn,
# whatever add_generation_prompt says.
PUBLISHED = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<|im_start|>user\n' + message['content'] + '<|im_end|>\n<|im_start|>assistant\n' }}"
    "{% elif message['role'] == 'system' %}"
    "{{ '<|im_start|>system\n' + message['content'] + '<|im_end|>\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)


def write(directory, **files):
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def test_a_template_that_opens_the_assistants_turn_itself_is_left_alone(tmp_path):
    """Adding the prefix once more, as servers do, makes the model answer an empty turn."""
    write(tmp_path, tokenizer_config={"chat_template": PUBLISHED, "bos_token": {"content": "<s>"}})
    text = read_chat_template(tmp_path).render([USER, ASSISTANT, USER])
    assert text == (
        "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text.count("<|im_start|>assistant") == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"chat_template": "{{ messages[0].content }}!"},
        {"chat_template": [{"name": "default", "template": "{{ messages[0].content }}!"}]},
    ],
)
def test_where_a_template_may_stand(tmp_path, settings):
    write(tmp_path, tokenizer_config=settings)
    assert read_chat_template(tmp_path).render([USER]) == "Hi!"
    (tmp_path / "chat_template.jinja").write_text("from its own file")
    assert read_chat_template(tmp_path).render([USER]) == "from its own file"


def test_a_base_model_has_none(tmp_path):
    assert read_chat_template(tmp_path) is None


def test_what_a_template_may_use(tmp_path):
    source = (
        "{%- for m in messages -%}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{{ {'a': 'ü'} | tojson }}{{ strftime_now('%Y') | length }}{%- endfor -%}"
    )
    write(tmp_path, tokenizer_config={"chat_template": source})
    assert read_chat_template(tmp_path).render([USER, USER]) == '{"a": "ü"}4'


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages[0].content + 1 }}", "can only concatenate"),
    ],
)
def test_a_template_that_refuses_or_reaches_out(tmp_path, source, message):
    write(tmp_path, tokenizer_config={"chat_template": source})
    with pytest.raises(TemplateRefused, match=message):
        read_chat_template(tmp_path).render([USER])


def test_a_template_that_is_none(tmp_path):
    write(tmp_path, tokenizer_config={"chat_template": "{% for %}"})
    with pytest.raises(CheckpointError, match="chat template"):
        read_chat_template(tmp_path)


def test_the_makers_defaults(tmp_path):
    assert read_defaults(tmp_path) == Defaults()
    write(tmp_path, generation_config={"do_sample": True, "temperature": 0.0, "max_new_tokens": 9})
    assert read_defaults(tmp_path) == Defaults(temperature=0.0, max_tokens=9), (
        "as published: greedy"
    )
    write(tmp_path, generation_config={"temperature": 0.3, "top_k": 5})
    assert read_defaults(tmp_path) == Defaults(), "sampling is not switched on"
    write(tmp_path, generation_config={"do_sample": True, "top_p": 0.9, "top_k": 40, "min_p": True})
    assert read_defaults(tmp_path) == Defaults(top_p=0.9, top_k=40)


def test_no_name_is_the_bundled_model():
    assert locate(None).name == "turbosparse-tiny"
    assert (locate(None).directory / "config.json").is_file()


def test_a_directory_is_itself(tmp_path):
    assert locate(str(tmp_path)).directory == tmp_path


@pytest.mark.parametrize("name", ["./nothing", "/no/such/folder", "~/x", "a/b/c"])
def test_a_path_that_is_not_there_is_never_looked_up_elsewhere(name, monkeypatch):
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("it was looked up")
    )
    with pytest.raises(CheckpointError, match="no directory"):
        locate(name)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        locate(str(tmp_path / "model.safetensors"))


def test_anything_else_is_a_repository(tmp_path, monkeypatch):
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    located = locate("owner/name")
    assert (located.directory, located.name) == (tmp_path, "owner/name")
    assert checkpoint.locate_predictors("owner/predictors") == str(tmp_path)
    assert [name for name, _ in asked] == ["owner/name", "owner/predictors"]
    assert "*.safetensors" in asked[0][1]
    assert "*.bin" not in asked[0][1], "pickles are not fetched"
    assert "*.pt" in asked[1][1]


def test_a_repository_that_cannot_be_fetched(monkeypatch):
    def fail(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=r"owner/name.*no route to host"):
        locate("owner/name")
    assert issubclass(HfHubHTTPError, OSError), "what the library raises is caught with it"
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="neither a directory nor a repository"):
        locate("not a name")


def test_a_tokenizer_that_is_missing_or_broken(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_tokenizer(tmp_path)
