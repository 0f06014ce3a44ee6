"""The JSON of OpenAI's responses API, whole and in server-sent events."""

from __future__ import annotations

from collections.abc import Iterable

from .errors import ApiError
from .generation import Answer, Generation, Piece, Usage
from .responses_schemas import ResponsesRequest
from .tool_parser import Call, CallDelta, new_id
from .wire import event

Members = dict[str, object]


class ResponsesDialect:
    """One answer: items of text and of calls, one after the other."""

    def __init__(self, generation: Generation, request: ResponsesRequest) -> None:
        self._generation = generation
        self._said = _said(request)
        self._answer = Answer()
        self._items: list[Members] = []  # those that are complete
        self._text: _OpenText | None = None
        self._call: _OpenCall | None = None
        self._num_events = 0

    def opening(self) -> Iterable[bytes]:
        for name in ("created", "in_progress"):
            yield self._event(f"response.{name}", response=self._response("in_progress"))

    def piece(self, piece: Piece) -> bytes:
        self._answer.finish = piece.finish
        events: list[bytes] = []
        if piece.text:
            events += self._add_text(piece.text)
        for delta in piece.calls:
            events += self._add_call(delta)
        return b"".join(events)

    def _add_text(self, text: str) -> Iterable[bytes]:
        if self._text is None:
            yield from self._end()
            self._text = _OpenText(new_id("msg"))
            yield self._item_event("added", self._text.item("in_progress", empty=True))
            yield self._part_event("content_part.added", part=_part(""))
        self._text.text += text
        yield self._part_event("output_text.delta", delta=text, logprobs=[])

    def _add_call(self, delta: CallDelta) -> Iterable[bytes]:
        if delta.id is not None and delta.name is not None:
            yield from self._end()
            self._call = _OpenCall(new_id("fc"), delta.id, delta.name)
            yield self._item_event("added", self._call.item("in_progress"))
        assert self._call is not None, delta
        self._call.arguments += delta.arguments
        if delta.arguments:
            yield self._call_event("delta", delta=delta.arguments)

    def _end(self, status: str = "completed") -> Iterable[bytes]:
        """Close the item that is open."""
        if self._text is not None:
            text, item = self._text.text, self._text.item(status)
            yield self._part_event("output_text.done", text=text, logprobs=[])
            yield self._part_event("content_part.done", part=_part(text))
            yield self._item_event("done", item)
            self._items.append(item)
            self._text = None
        if self._call is not None:
            call, item = self._call, self._call.item(status)
            yield self._call_event("done", name=call.name, arguments=call.arguments)
            yield self._item_event("done", item)
            self._items.append(item)
            self._call = None

    def closing(self) -> bytes:
        status = _status(self._answer.finish)
        said_nothing = not (self._items or self._text or self._call)
        events = [*self._add_text("")] if said_nothing else []
        events += self._end(status)
        events.append(self._event(f"response.{status}", response=self._response(status)))
        return b"".join(events)

    def failure(self, error: ApiError) -> bytes:
        """The members that OpenAI documents, and the object that its clients look for."""
        said = {"message": error.message, "code": error.code, "param": error.param}
        return self._event("error", **said, **error.body())

    def whole(self, answers: list[Answer]) -> dict[str, object]:
        [answer] = answers
        self._answer.finish = answer.finish
        status = _status(answer.finish)
        if answer.text or not answer.calls:
            self._items.append(_OpenText(new_id("msg"), answer.text).item(status))
        for id, call in zip(answer.call_ids, answer.calls, strict=True):
            self._items.append(_call_item(new_id("fc"), id, call, status))
        return self._response(status)

    def _response(self, status: str) -> Members:
        generation = self._generation
        is_cut = status == "incomplete"
        return {
            "id": generation.id,
            "object": "response",
            "created_at": generation.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "model": generation.model,
            "output": [*self._items],
            "usage": None if status == "in_progress" else usage_json(generation.usage()),
            **self._said,
        }

    def _event(self, name: str, /, **members: object) -> bytes:
        number = self._num_events
        self._num_events += 1
        return event({"type": name, "sequence_number": number, **members}, name)

    def _item_event(self, what: str, item: Members) -> bytes:
        return self._event(f"response.output_item.{what}", output_index=len(self._items), item=item)

    def _part_event(self, name: str, /, **members: object) -> bytes:
        assert self._text is not None, name
        place: Members = {"item_id": self._text.id, "output_index": len(self._items)}
        return self._event(f"response.{name}", **place, content_index=0, **members)

    def _call_event(self, what: str, /, **members: object) -> bytes:
        assert self._call is not None, what
        place: Members = {"item_id": self._call.id, "output_index": len(self._items)}
        return self._event(f"response.function_call_arguments.{what}", **place, **members)


class _OpenText:
    def __init__(self, id: str, text: str = "") -> None:
        self.id = id
        self.text = text

    def item(self, status: str, *, empty: bool = False) -> Members:
        return {
            "type": "message",
            "id": self.id,
            "status": status,
            "role": "assistant",
            "content": [] if empty else [_part(self.text)],
        }


class _OpenCall:
    def __init__(self, id: str, call_id: str, name: str) -> None:
        self.id = id
        self.call_id = call_id
        self.name = name
        self.arguments = ""

    def item(self, status: str) -> Members:
        return _call_item(self.id, self.call_id, Call(self.name, self.arguments), status)


def _call_item(id: str, call_id: str, call: Call, status: str) -> Members:
    return {
        "type": "function_call",
        "id": id,
        "call_id": call_id,
        "name": call.name,
        "arguments": call.arguments,
        "status": status,
    }


def _part(text: str) -> Members:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _status(finish: str | None) -> str:
    return "incomplete" if finish == "length" else "completed"


def _said(request: ResponsesRequest) -> Members:
    """What of the request OpenAI repeats in its answer."""
    repeated = {"text", "tools", "tool_choice"}
    said = request.model_dump(include=repeated, exclude_unset=True, by_alias=True)
    extra = request.model_extra or {}
    return {
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": extra.get("metadata") or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": request.temperature,
        "text": said.get("text") or {"format": {"type": "text"}},
        "tool_choice": said.get("tool_choice") or "auto",
        "tools": said.get("tools") or [],
        "top_p": request.top_p,
        "truncation": "disabled",
    }


def usage_json(usage: Usage) -> Members:
    said: Members = {
        "input_tokens": usage.num_prompt,
        "input_tokens_details": {"cached_tokens": usage.num_cached},
        "output_tokens": usage.num_completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.num_prompt + usage.num_completion,
    }
    if usage.active_fraction is not None:
        said["active_fraction"] = usage.active_fraction
    return said
