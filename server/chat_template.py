"""Messages to one prompt text, by the template that the checkpoint ships. Knows no token id."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NoReturn, cast

from jinja2 import TemplateError, meta
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .checkpoint import CheckpointError, read_json

Message = dict[str, object]


class TemplateRefused(Exception):
    """The template cannot render these messages; the message says what it said."""


class ChatTemplate:
    """Renders as transformers does: an immutable sandbox, trimmed blocks, the same helpers.

    The template alone decides where the assistant's turn begins. The published TurboSparse
    ChatML templates open it after every user turn whether or not `add_generation_prompt` is set,
    so nothing is ever appended here.
    """

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        try:
            self._template = environment.from_string(source, HELPERS)
            self.variables = meta.find_undeclared_variables(environment.parse(source))
        except TemplateError as error:
            raise CheckpointError(f"the chat template is not valid: {error}") from error
        self._special_tokens = special_tokens

    @property
    def knows_tools(self) -> bool:
        """Whether it shows tools to the model by itself."""
        return "tools" in self.variables

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] = (),
        open_turn: bool = True,
        more: Mapping[str, object] | None = None,
    ) -> str:
        """The prompt; with `open_turn` ready for the assistant's words. Raises TemplateRefused.

        `more` are variables of the template's own, as `enable_thinking` is of some.
        """
        variables: dict[str, object] = {**(more or {}), **self._special_tokens}
        if tools:
            variables["tools"] = tools
        try:
            return self._template.render(
                variables, messages=messages, add_generation_prompt=open_turn
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise TemplateRefused(str(error)) from error


def read_chat_template(directory: Path) -> ChatTemplate | None:
    """The default template of a checkpoint; None for a base model that has none."""
    settings = read_json(directory / "tokenizer_config.json")
    source = _source(directory, settings)
    if source is None:
        return None
    tokens = {name: text for name in settings if (text := _token(settings[name]))}
    tokens = {name: text for name, text in tokens.items() if name.endswith("_token")}
    return ChatTemplate(source, tokens)


def _source(directory: Path, settings: dict[str, object]) -> str | None:
    beside = directory / "chat_template.jinja"
    if beside.is_file():
        return beside.read_text("utf-8")
    found = read_json(directory / "chat_template.json").get("chat_template")
    found = settings.get("chat_template") if found is None else found
    if isinstance(found, list):  # several, by name
        named = {t["name"]: t["template"] for t in cast("list[dict[str, str]]", found)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _token(value: object) -> str | None:
    """A special token is its text, or an object that holds it."""
    if isinstance(value, dict):
        value = cast("dict[str, object]", value).get("content")
    return value if isinstance(value, str) else None


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


HELPERS = {"raise_exception": _refuse, "strftime_now": _now}
