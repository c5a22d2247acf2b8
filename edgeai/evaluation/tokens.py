"""The part of the proof that is about text: token ids, chat templates, and where an answer ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from converters import tokenproof
from converters.errors import InvalidModel, TokenizerMismatch
from converters.families import ModelPlan
from converters.stress import PROSE
from converters.tokenizer import Vocabulary, source_tokenizer
from converters.tokenproof import Question
from edgeai import chat
from edgeai.errors import UsageError
from edgeai.evaluation.prompts import Prompt
from edgeai.evaluation.score import TIE
from edgeai.types import Message, Notice, Row

__all__ = [
    "CONVERSATIONS",
    "as_segments",
    "chat_rows",
    "continuation_rows",
    "end_prompt",
    "id_rows",
    "questions",
    "render",
    "same_ids",
    "segments",
]

CONVERSATIONS: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": "Hi"},),
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2?\n"}),
    (
        {"role": "user", "content": " Ünï 模型 'quoted' \"text\" "},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "{{ 1 + 1 }} {% raw %}"},
    ),
)
ASKED: tuple[Message, ...] = ({"role": "user", "content": "What is the capital of France? Answer with one word."},)
ANSWER = "The capital of France is Paris."
MOST_STEPS = 24
"""Tokens of a continuation."""


def render(vocabulary: Vocabulary, messages: Sequence[Message], named: Mapping[str, str]) -> list[chat.Segment]:
    """Return what the source's template makes of MESSAGES with the NAMED tokens. Raises UsageError or InvalidModel."""
    return chat.render(vocabulary.chat_template, messages, special=named, control=vocabulary.special_texts())


def asked_ids(vocabulary: Vocabulary) -> list[int] | None:
    """Return the ids of a question in the model's own format; None for a base model, or where the template refuses it."""
    named = {
        f"{name}_token": vocabulary.tokens[token] if token is not None else ""
        for name, token in (("bos", vocabulary.bos), ("eos", vocabulary.eos), ("pad", vocabulary.pad))
    }
    if vocabulary.chat_template is None:
        return None
    try:
        parts = render(vocabulary, ASKED, named)
    except (UsageError, InvalidModel):
        return None
    ids: list[int] = (
        source_tokenizer(vocabulary.spec).encode("".join(part.text for part in parts), add_special_tokens=False).ids
    )
    return ids


def questions(plan: ModelPlan, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Return what both children continue: a question in the model's format, and prose."""
    tokenizer = source_tokenizer(vocabulary.spec)
    prose = [*vocabulary.before, *tokenizer.encode(PROSE[-1][:120], add_special_tokens=False).ids]
    found = [ids for ids in (asked_ids(vocabulary), prose) if ids]
    stop = list(vocabulary.stop_ids)
    return [
        {"ids": ids, "count": min(MOST_STEPS, plan.context - len(ids)), "stop": stop}
        for ids in found
        if len(ids) < plan.context
    ]


def end_prompt(plan: ModelPlan, vocabulary: Vocabulary) -> list[Prompt]:
    """Return a finished answer (of a base model, a finished text): what follows should be an end token."""
    tokenizer = source_tokenizer(vocabulary.spec)
    asked = asked_ids(vocabulary)
    answer = tokenizer.encode(ANSWER if asked else PROSE[-1], add_special_tokens=False).ids
    ids = [*(asked if asked else vocabulary.before), *answer][: plan.context]
    return [Prompt(kind="end", ids=ids)] if ids and vocabulary.stop_ids else []


def id_rows(vocabulary: Vocabulary, question: Question, answer: Mapping[str, Any]) -> list[Row]:
    """Return the rows about the ids that the file gave for the stress list, and its end tokens."""
    try:
        question.check(answer)
    except TokenizerMismatch as error:
        return [Row(name="token ids", value=error.message, limit="equal", ok=False)]
    ends = ", ".join(repr(vocabulary.tokens[token]) for token in answer["eog"])
    ids = f"{question.summary()} (pre {vocabulary.pre!r})"
    return [Row(name="token ids", value=ids, limit="equal"), Row(name="end tokens", value=ends)]


def same_ids(vocabulary: Vocabulary, facts: Mapping[str, Any]) -> tuple[list[Row], list[Notice]]:
    """State whether the tokenizer class of transformers agrees with the tokenizer that the file is made from."""
    expected = facts.get("ids")
    if expected is None:
        message = (
            f"transformers cannot load the tokenizer ({facts.get('tokenizer_error')}); tokenizer.json is the reference"
        )
        return [], [Notice(code="tokenizer-class", message=message)]
    tokenizer = source_tokenizer(vocabulary.spec)
    texts = tokenproof.stress_texts(vocabulary)
    plain = [item.ids for item in tokenizer.encode_batch(texts, add_special_tokens=False)]
    ours = [vocabulary.with_ends(ids) for ids in plain]
    wrong = [text for text, left, right in zip(texts, ours, expected, strict=True) if left != right]
    if wrong:
        message = f"AutoTokenizer gives other ids than tokenizer.json for {len(wrong)} of {len(texts)} texts, such as "
        message += f"{min(wrong, key=len)!r}; tokenizer.json is the reference"
        return [], [Notice(code="tokenizer-class", message=message)]
    return [Row(name="token ids as transformers", value=f"equal for {len(texts)} texts", limit="equal")], []


def segments(vocabulary: Vocabulary, named: Mapping[str, str]) -> tuple[list[list[dict[str, Any]] | None], list[str]]:
    """Return each test conversation as the runtime gets it, in parts with their text and whether it is control, and the refusals."""
    found, errors = list[list[dict[str, Any]] | None](), list[str]()
    for messages in CONVERSATIONS if vocabulary.chat_template is not None else ():
        try:
            parts = render(vocabulary, messages, named)
        except (UsageError, InvalidModel) as error:
            found.append(None)
            errors.append(error.message)
        else:
            found.append([{"text": part.text, "control": part.control} for part in parts])
    return found, errors


def as_segments(parts: Sequence[Mapping[str, Any]]) -> list[chat.Segment]:
    """Return PARTS of a conversation, as `segments` makes them, as the values that they were made of."""
    return [chat.Segment(part["text"], part["control"]) for part in parts]


def chat_rows(
    template: Any,
    vocabulary: Vocabulary,
    parts: Sequence[list[dict[str, Any]] | None],
    errors: Sequence[str],
    ids: Sequence[Sequence[int]],
    facts: Mapping[str, Any],
) -> tuple[list[Row], list[Notice]]:
    """Compare the chats: TEMPLATE, which is that of the file, what is rendered with what transformers makes of it, and their token ids.

    PARTS are the rendered conversations (None: refused, for the reasons in ERRORS), IDS the runtime's for those that are not None.
    """
    source = vocabulary.chat_template
    if source is None:
        return [Row(name="chat template", value="none")], []
    if template != source:
        return [Row(name="chat template", value="not that of the source", limit="equal", ok=False)], []
    rendered = [None if part is None else "".join(item["text"] for item in part) for part in parts]
    expected = facts.get("rendered")
    if not any(text is not None for text in expected or rendered):
        value = f"refuses all {len(rendered)} test conversations" + (f": {errors[0]}" if errors else "")
        return [Row(name="chat template", value=value, limit="equal", ok=False)], []
    if expected:
        pairs = [(want, have) for want, have in zip(expected, rendered, strict=True) if want is not None]
        for want, have in pairs:
            if want != have:
                gives = f"gives {have!r}" if have is not None else f"fails here ({errors[0]})"
                return [Row(name="chat template", value=f"{gives} instead of {want!r}", limit="equal", ok=False)], []
        value = f"renders {len(pairs)} conversations as transformers does"
    else:
        value = "the same text; not rendered with transformers"
    row, notices = chat_ids_row(vocabulary, rendered, ids, facts)
    return [Row(name="chat template", value=value, limit="equal"), row], notices


def chat_ids_row(
    vocabulary: Vocabulary, rendered: Sequence[str | None], ids: Sequence[Sequence[int]], facts: Mapping[str, Any]
) -> tuple[Row, list[Notice]]:
    """Compare the runtime's IDS of the rendered conversations with the source tokenizer's, and these with AutoTokenizer's."""
    tokenizer = source_tokenizer(vocabulary.spec)
    texts = [text for text in rendered if text is not None]
    wanted = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    for text, want, have in zip(texts, wanted, ids, strict=True):
        if list(have) != want and vocabulary.inexact is None:
            value = f"{text!r} becomes {short(have)} instead of {short(want)}"
            return Row(name="chat token ids", value=value, limit="equal", ok=False), []
    notices = []
    theirs = [item for item, text in zip(facts.get("chat_ids") or [], rendered, strict=False) if text is not None]
    differ = [
        text for text, want, have in zip(texts, wanted, theirs, strict=False) if have is not None and have != want
    ]
    if differ:
        message = (
            "apply_chat_template of transformers gives other ids than tokenizer.json, which is the reference, for "
        )
        message += repr(differ[0])
        notices.append(Notice(code="tokenizer-class", message=message))
    same = sum(list(have) == want for have, want in zip(ids, wanted, strict=True))
    if same < len(texts):  # the tokenizer is inexact, and was allowed to be
        message = (
            f"{len(texts) - same} of {len(texts)} conversations get other token ids from the file than from the source"
        )
        notices.append(Notice(code="tokenizer-inexact", message=message))
    value = (
        f"equal for {same} of {len(texts)} conversations" if same < len(texts) else f"equal for {same} conversations"
    )
    return Row(name="chat token ids", value=value, limit="equal"), notices


def short(ids: Sequence[int]) -> str:
    """Return the last ids as text: chats differ at their end more often than at the beginning."""
    return f"[{'… ' if len(ids) > 12 else ''}{', '.join(map(str, ids[-12:]))}]"


def continuation_rows(
    vocabulary: Vocabulary,
    expected: Sequence[Mapping[str, Any]],
    found: Sequence[Sequence[int]],
    *,
    exact: bool,
    near: float = TIE,
) -> list[Row]:
    """Compare the likeliest continuations of torch and of the file, token by token, with their ends.

    Where they part, torch must hold both tokens for equally likely (a tie: NEAR standard deviations of its logits). Of a file that is
    not EXACT the length that they share is only stated. A runtime may stop earlier, at an end token that the source does not know.
    """
    shared, said = list[str](), list[str]()
    ok = True
    for want, have in zip(expected, found, strict=True):
        steps, wanted = want["steps"], want["ids"]
        same = next((at for at, pair in enumerate(zip(wanted, have, strict=False)) if pair[0] != pair[1]), None)
        if same is None and len(have) == len(wanted):
            ends = wanted and wanted[-1] in vocabulary.stop_ids
            said.append(f"{len(wanted)} tokens" + (f", ending with {vocabulary.tokens[wanted[-1]]!r}" if ends else ""))
        elif same is None and len(have) < len(wanted):
            said.append(
                f"{len(have)} tokens, where the runtime ends at {vocabulary.tokens[have[-1]]!r} and the source goes on"
            )
        elif same is not None and tie(steps[same], have[same], near):
            said.append(f"{same} tokens, then a tie")
        else:
            at = len(wanted) if same is None else same
            ok = False
            wants = text_of(vocabulary, wanted[at:]) if same is not None else "the end"
            said.append(f"{at} tokens, then {text_of(vocabulary, have[at:])} instead of {wants}")
        shared.append(str(same if same is not None else len(wanted)))
    if not said:
        return []
    if not exact:
        of = ", ".join(f"{have} of {len(want['ids'])}" for have, want in zip(shared, expected, strict=True))
        return [Row(name="continues as torch, tokens", value=of)]
    return [Row(name="continues as torch", value="; ".join(said), limit="equal", ok=ok)]


def tie(step: Mapping[str, Any], token: int, near: float) -> bool:
    """Whether torch holds TOKEN for as likely as its own choice in this STEP."""
    if token not in step["ids"]:
        return False
    gap = step["logits"][0] - step["logits"][step["ids"].index(token)]
    return bool(gap <= near * step["spread"])


def text_of(vocabulary: Vocabulary, ids: Sequence[int]) -> str:
    """Return the first of IDS as text."""
    return repr(vocabulary.tokens[ids[0]]) if ids else "the end"
