"""What an answer must look like, as one grammar in llguidance's format. Knows no token.

vLLM's and OpenAI's fields say the same in many ways; a request uses one of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

from llguidance import LLMatcher, grammar_from

from .errors import BadRequest
from .lark import json_rule
from .schemas import CompletionFields, StructuredOutputs
from .tools import ToolPlan, forced_rules, free_rules

ANY_OBJECT: dict[str, object] = {"type": "object"}
MAX_MESSAGE = 300  # characters of the grammar engine's complaint that a client is shown


@dataclass(frozen=True, slots=True)
class Format:
    """One wish: `kind` is json, regex, choice or grammar, `field` where it was said."""

    kind: str
    value: object
    field: str


def grammar_of(request: CompletionFields, plan: ToolPlan | None) -> str | None:
    """The grammar of the answer, None where it is free; raises BadRequest."""
    wanted = format_of(request)
    if wanted is None and (plan is None or not (plan.must_call or plan.has_strict)):
        return None
    _refuse_lengthening(request)
    if plan is None:
        assert wanted is not None
        return _alone(wanted)
    if wanted is None:
        start = ("calls", forced_rules(plan)) if plan.must_call else ("free", free_rules(plan))
        return f"start: {start[0]}\n{start[1]}"
    if plan.must_call or wanted.kind != "json":
        raise BadRequest(f"{wanted.field} does not go with these tools", wanted.field)
    answer = json_rule(_schema(wanted))
    return f"start: answer | calls\nanswer: {answer}\n{forced_rules(plan)}"


def format_of(request: CompletionFields) -> Format | None:
    """The one format that was asked for; raises BadRequest for two."""
    found = [
        Format(kind, value, field)
        for kind, value, field in (
            *_response_format(request),
            *_structured_outputs(request.structured_outputs),
            ("json", request.guided_json, "guided_json"),
            ("regex", request.guided_regex, "guided_regex"),
            ("choice", request.guided_choice, "guided_choice"),
            ("grammar", request.guided_grammar, "guided_grammar"),
            ("regex", request.regex, "regex"),
            ("grammar", request.ebnf, "ebnf"),
        )
        if value is not None
    ]
    if len(found) > 1:
        raise BadRequest(f"{found[1].field} does not go with {found[0].field}", found[1].field)
    return found[0] if found else None


def _response_format(request: CompletionFields) -> list[tuple[str, object, str]]:
    said = request.response_format
    if said is None or said.type == "text":
        return []
    if said.type == "json_object":
        return [("json", ANY_OBJECT, "response_format")]
    field = "response_format.json_schema"
    if said.json_schema is None or said.json_schema.schema_ is None:
        raise BadRequest(f"{field}.schema is missing", f"{field}.schema")
    return [("json", said.json_schema.schema_, f"{field}.schema")]


def _structured_outputs(said: StructuredOutputs | None) -> list[tuple[str, object, str]]:
    if said is None:
        return []
    name = "structured_outputs"
    found: list[tuple[str, object, str]] = [
        ("json", said.json_, f"{name}.json"),
        ("json", ANY_OBJECT if said.json_object else None, f"{name}.json_object"),
        ("regex", said.regex, f"{name}.regex"),
        ("choice", said.choice, f"{name}.choice"),
        ("grammar", said.grammar, f"{name}.grammar"),
    ]
    if all(value is None for _, value, _ in found):
        raise BadRequest(f"{name} names no json, json_object, regex, choice or grammar", name)
    return found


def _refuse_lengthening(request: CompletionFields) -> None:
    """A grammar ends where it ends: an answer cannot be made longer than it."""
    if request.ignore_eos:
        raise BadRequest("ignore_eos does not go with a grammar or forced tools", "ignore_eos")
    if request.min_tokens:
        raise BadRequest("min_tokens does not go with a grammar or forced tools", "min_tokens")


def _alone(wanted: Format) -> str:
    match wanted.kind:
        case "json":
            return f"start: {json_rule(_schema(wanted))}\n"
        case "regex":
            return LLMatcher.grammar_from_regex(str(wanted.value))
        case "choice":
            return grammar_from("choice", json.dumps(wanted.value))
        case _:
            try:
                return grammar_from("grammar", str(wanted.value))
            except ValueError as error:
                raise _invalid(str(error), wanted.field) from error


def _schema(wanted: Format) -> object:
    """A schema as an object, though vLLM's fields may bring it as text."""
    if not isinstance(wanted.value, str):
        return wanted.value
    try:
        return json.loads(wanted.value)
    except (ValueError, RecursionError) as error:
        raise _invalid(f"it is not JSON: {error}", wanted.field) from error


def check(grammar: str, field: str) -> None:
    """Raise BadRequest for a grammar that cannot be followed. Takes milliseconds: on a thread."""
    complaint = complaint_about(grammar)
    if complaint is not None:
        raise _invalid(complaint, field)


@lru_cache(64)
def complaint_about(grammar: str) -> str | None:
    """What the grammar engine says is wrong with it."""
    is_wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    return messages[0] if is_wrong else None


def _invalid(complaint: str, field: str) -> BadRequest:
    return BadRequest(f"{field} cannot be followed: {complaint[:MAX_MESSAGE]}", field)
