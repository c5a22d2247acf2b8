"""What happens to a prompt that is longer than the context: an error, or a cut that is reported. The one place for it.

The room of a prompt is the context less what the answer may take: `max_tokens`, but no more than half of the context, or a quarter of it
where no `max_tokens` is given. `error` lets a prompt have all but one token of the context, as its answer may then be short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgeai.errors import ContextExceeded, UsageError
from edgeai.types import GenerationConfig, Message, Notice, Prompt

__all__ = ["Fitted", "Tokens", "fit_prompt", "room_for_prompt"]

FLOOR = 8
"""Fewer tokens of a message than this say nothing: no message is cut further."""

TRIES = 8
"""A text that is cut and put together again may have a few tokens more than its parts; each try cuts as many more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What a cut needs to know of a model.

    `encode`: the ids of a whole prompt, as the model would read it. `tokenize`: the ids of a text alone, special tokens in it being text.
    `piece`: the bytes of an id, which need not be whole characters.
    """

    encode: Callable[[Prompt], list[int]]
    tokenize: Callable[[str], list[int]]
    piece: Callable[[int], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A prompt that fits: `ids` is what the model reads, `truncated_tokens` how many fewer than it was given, which `notices` say."""

    prompt: Prompt
    ids: list[int]
    truncated_tokens: int = 0
    notices: tuple[Notice, ...] = ()


def fit_prompt(
    prompt: Prompt, config: GenerationConfig, *, context: int, trained: int | None, tokens: Tokens
) -> Fitted:
    """Return PROMPT as CONFIG.overflow makes it fit into CONTEXT tokens; TRAINED is the context that the model was trained with.

    `rolling` leaves out the oldest turns (a user's message and what follows it) and keeps system messages and the newest turn; of a plain
    text it keeps the end. `truncate-middle` keeps beginning and end of the longest messages, or of the text, and never cuts a system
    message. Both cut between tokens and between characters.

    CONFIG.prefill follows the prompt. Raises ContextExceeded where that is not enough, or nothing may be cut; UsageError for a prompt of
    no tokens, and for tools.
    """
    if config.tools:
        raise UsageError("models on this machine call no tools", hint="ask an endpoint, or leave out `tools`")
    if config.prefill:
        plain, begun = tokens.encode, tokens.tokenize(config.prefill)
        tokens = replace(tokens, encode=lambda prompt: [*plain(prompt), *begun])
    ids = tokens.encode(prompt)
    if not ids:
        raise UsageError("the prompt is empty", hint="give at least one character")
    room = room_for_prompt(config, context)
    if config.overflow == "error" or len(ids) <= room:
        if len(ids) >= context:
            raise _too_long(len(ids), context, trained, prompt)
        return Fitted(prompt=prompt, ids=ids)
    cut = _Cut(ids, room, context, tokens)
    ways = {"truncate-middle": cut.middle, "rolling": cut.oldest}
    found = ways.pop(config.overflow)(prompt)
    if isinstance(found, Fitted):
        return found
    others = [f"`overflow={name}`" for name, way in ways.items() if isinstance(way(prompt), Fitted)]
    rest = others[0] if others else "shorten what is not cut"
    raise ContextExceeded(found, hint=f"use a larger `ctx`, or {rest}")


def room_for_prompt(config: GenerationConfig, context: int) -> int:
    """Return how many tokens of CONTEXT a prompt may have so that the answer has room."""
    answer = context // 4 if config.max_tokens is None else min(config.max_tokens, context // 2)
    return context - max(answer, 1)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A prompt of `ids` that must be cut to `room` tokens. Its methods return what fits, or why nothing does."""

    ids: list[int]
    room: int
    context: int
    tokens: Tokens

    def oldest(self, prompt: Prompt) -> Fitted | str:
        """Keep the end of a text; leave out the oldest turns. The newest stays, in the room of the answer if need be."""
        if isinstance(prompt, str):
            return self._shorten(prompt, [prompt], lambda texts: texts[0], "its beginning", head=0.0)
        messages = prompt
        system = [index for index, message in enumerate(messages) if message["role"] == "system"]
        turns = _turns(messages)

        def without(count: int) -> list[Message]:
            kept = {*system, *(index for turn in turns[count:] for index in turn)}
            return [message for index, message in enumerate(messages) if index in kept]

        low, high = 1, max(len(turns) - 1, 0)  # the smallest number of turns to leave out lies between them
        while low < high:
            middle = (low + high) // 2
            if len(self.tokens.encode(without(middle))) <= self.room:
                high = middle
            else:
                low = middle + 1
        kept = without(high)
        ids = self.tokens.encode(kept) if high else self.ids
        if len(ids) >= self.context:
            return (
                f"the newest message, with the system message, has {len(ids)} tokens and the context holds {self.context},"
                " the answer included"
            )
        left_out = len(messages) - len(kept)
        return self._fitted(kept, ids, f"the {left_out} oldest messages" if left_out > 1 else "the oldest message")

    def middle(self, prompt: Prompt) -> Fitted | str:
        """Keep beginning and end of the longest messages, or of a text."""
        if isinstance(prompt, str):
            return self._shorten(prompt, [prompt], lambda texts: texts[0], "its middle", head=0.5)
        longest = [index for index, message in enumerate(prompt) if message["role"] != "system"]

        def rebuild(texts: Sequence[str]) -> list[Message]:
            shorter = dict(zip(longest, texts, strict=True))
            return [
                {"role": message["role"], "content": shorter.get(index, message["content"])}
                for index, message in enumerate(prompt)
            ]

        texts = [prompt[index]["content"] for index in longest]
        return self._shorten(prompt, texts, rebuild, "the middle of the longest messages", head=0.5)

    def _shorten(
        self,
        whole: Prompt,
        texts: Sequence[str],
        rebuild: Callable[[Sequence[str]], Prompt],
        what: str,
        *,
        head: float,
    ) -> Fitted | str:
        """Cut the longest of TEXTS, of which WHOLE is made, to the largest length with which what REBUILD makes of them fits."""
        parts = [self.tokens.tokenize(text) for text in texts]
        over = len(self.ids) - self.room
        for _ in range(TRIES):
            level = _level([len(ids) for ids in parts], over)
            if level < FLOOR:
                break
            prompt = rebuild([self._keep(*pair, level, head) for pair in zip(texts, parts, strict=True)])
            ids = self.tokens.encode(prompt)
            if len(ids) <= self.room:
                return self._fitted(prompt, ids, what)
            over += len(ids) - self.room
        if len(self.ids) < self.context:
            return Fitted(prompt=whole, ids=self.ids)
        uncut = "cutting it does not help" if isinstance(whole, str) else "cutting messages does not help"
        return f"the prompt has {len(self.ids)} tokens, the context leaves {self.room} for it, and {uncut}"

    def _keep(self, text: str, ids: Sequence[int], count: int, head: float) -> str:
        """Return COUNT of the tokens IDS of TEXT as text: the share HEAD of them from its beginning, the others from its end."""
        if len(ids) <= count:
            return text
        first = round(count * head)
        piece, data = self.tokens.piece, text.encode()
        start = b"".join(map(piece, ids[:first]))
        if start.startswith(b" ") and not data.startswith(b" "):
            start = start[1:]  # SentencePiece puts a space before a text
        end = b"".join(map(piece, ids[len(ids) - (count - first) :]))
        if not (data.startswith(start) and data.endswith(end)):  # a tokenizer that changes text: by characters then
            start = text[: len(text) * first // len(ids)].encode()
            end = text[len(text) - len(text) * (count - first) // len(ids) :].encode()
        return start.decode("utf-8", "ignore") + end.decode(
            "utf-8", "ignore"
        )  # only half characters at the cut are ignored

    def _fitted(self, prompt: Prompt, ids: list[int], what: str) -> Fitted:
        gone = len(self.ids) - len(ids)
        if not gone:
            return Fitted(prompt=prompt, ids=ids)
        message = (
            f"the prompt has {len(self.ids)} tokens and the context of {self.context} leaves {self.room} for it;"
            f" left out: {what}, {gone} tokens"
        )
        notice = Notice(code="context-truncated", message=message)
        return Fitted(prompt=prompt, ids=ids, truncated_tokens=gone, notices=(notice,))


def _turns(messages: Sequence[Message]) -> list[list[int]]:
    """Return the indexes of MESSAGES in turns: each begins with a user's message and has what follows it, but no system message."""
    turns: list[list[int]] = []
    for index, message in enumerate(messages):
        if message["role"] == "system":
            continue
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(index)
    return turns


def _level(lengths: Sequence[int], over: int) -> int:
    """Return the largest length such that cutting all LENGTHS down to it takes away OVER or more; below zero if nothing does."""
    ordered, total = sorted(lengths, reverse=True), 0
    for count, length in enumerate(ordered, start=1):
        total += length
        next_length = ordered[count] if count < len(ordered) else 0
        if total - count * next_length >= over or count == len(ordered):
            return (total - over) // count
    return -1


def _too_long(tokens: int, context: int, trained: int | None, prompt: Prompt) -> ContextExceeded:
    cut = "truncate-middle" if isinstance(prompt, str) or len(_turns(prompt)) < 2 else "rolling"
    if trained is None or trained > tokens:
        wish = max(tokens + 1024, 2 * context)
        hint = f"use `ctx={min(trained or wish, wish)}`, or `overflow={cut}`"
    else:
        hint = f"the model was trained for {trained} tokens: shorten the prompt, or use `overflow={cut}`"
    return ContextExceeded(
        f"the prompt has {tokens} tokens and the context holds {context}, the answer included", hint=hint
    )
