"""Extracts the answer from a model's reply, without the remains of chat templates and servers: reasoning, template tokens, fences, JSON."""

import json
import re

_REASONING = r"think(?:ing)?|thoughts?|reasoning|reason|reflection|analysis|seed:think|scratchpad"
_OPENED = re.compile(
    rf"(?:\A|(?<=[\n.!?>]))\s*(?:<(?:{_REASONING})>|\[THINK\]|◁think▷|<\|(?:begin_of_thought|think)\|>|<\|channel\|>(?:analysis|commentary)).*",
    re.IGNORECASE | re.DOTALL,
)
_CLOSED = re.compile(rf"</(?:{_REASONING})>|\[/THINK\]|◁/think▷|<\|(?:end_of_thought|/think)\|>|<\|channel\|>final(?:<\|message\|>)?", re.IGNORECASE)

_TURN = r"<\|(?:im_end|eot_id|eom_id|end|endoftext|end_of_text|return|eos|end_of_turn|im_start)\|>|</s>|<end_of_turn>|<eos>|<｜end▁of▁sentence｜>|\[/?INST\]"
_ENDED = re.compile(rf"(?<=\S)\s*(?:{_TURN}).*", re.DOTALL)
"""Everything after a token that ends a turn: models without a stop token continue with invented turns."""

_TOKEN = r"<\|[^|<>]{1,40}\|>|</?s>|<bos>|<pad>|<start_of_turn>(?:model)?|<｜[^｜<>]{1,40}｜>|\[/?INST\]|</?(?:answer|output|response|description|caption)>"
_AROUND = re.compile(rf"\A(?:\s|{_TOKEN}|(?<=\|>)assistant\b)+|(?:\s|{_TOKEN})+\Z", re.IGNORECASE)

_FENCED = re.compile(r"\A```[a-z]*\s*\n?(.*?)\s*```\Z", re.DOTALL | re.IGNORECASE)
_NAMES = ("description", "caption", "sentence", "answer", "response", "text", "content", "output", "result")


def said(text: str) -> str:
    """The answer in a reply; empty if the reply is only reasoning, finished or not. Accepts any string."""
    text = without_reasoning(text)
    text = _AROUND.sub("", _ENDED.sub("", _AROUND.sub("", text)))
    if fenced := _FENCED.match(text):
        text = fenced[1]
    return _out_of_json(text)


def is_only_reasoning(text: str) -> bool:
    """Whether a reply contains reasoning but no answer."""
    return bool(text.strip()) and not without_reasoning(text).strip()


def without_reasoning(text: str) -> str:
    """The text after the last end of reasoning; the start tag may be missing, since some chat templates put it into the prompt."""
    return _OPENED.sub("", _CLOSED.split(text)[-1])


def _out_of_json(text: str) -> str:
    """The text inside a JSON object, list or string; other text is returned unchanged."""
    if text[:1] not in ("{", "[", '"'):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, list) and len(value) == 1:
        [value] = value
    if isinstance(value, dict):
        by_name = {str(name).lower(): held for name, held in value.items()}
        value = next((by_name[name] for name in _NAMES if name in by_name), next(iter(by_name.values())) if len(by_name) == 1 else None)
    return value if isinstance(value, str) else text
