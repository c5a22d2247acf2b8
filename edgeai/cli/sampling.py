"""The options that say how to answer: the fields of types.GenerationConfig."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from edgeai.errors import UsageError

__all__ = ["ANSWER_OPTIONS", "SAMPLING_OPTIONS", "answer_options"]

DEFAULT_MAX_TOKENS = 1024
"""An answer ends here unless --max-tokens says otherwise: a small model that repeats itself must not run for ever."""

ANSWER_OPTIONS = ("max_tokens", "max_seconds", "stop", "overflow", "logprobs", "speculative")
SAMPLING_OPTIONS = ("temp", "top_p", "top_k", "min_p", "repeat_penalty", "seed", "logit_bias")

_FIELDS = {"temp": "temperature", "speculative": "speculation"}
"""Names of options → fields of GenerationConfig, where they differ."""


def answer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options, and pass the command one `answer: dict` of those that were given, for Model.config."""

    @click.option("-n", "--max-tokens", type=int, default=DEFAULT_MAX_TOKENS, show_default=True, help="Longest answer.")
    @click.option("--max-seconds", type=float, help="Stop the answer after this time.")
    @click.option("--stop", multiple=True, help="End the answer before this text; may be repeated.")
    @click.option(
        "--overflow",
        type=click.Choice(["error", "truncate-middle", "rolling"]),
        help="When the prompt is longer than the context: fail, cut long messages in the middle, or leave out the oldest"
        " messages. What is cut is said.  [default: error]",
    )
    @click.option("--logprobs", type=int, help="With --json: log-probabilities, and those of N alternatives.")
    @click.option(
        "--speculative", type=click.Choice(["lookup", "draft"]), help="Guess ahead from the text so far, or by --draft."
    )
    @click.option("--temp", type=float, help=_own("Temperature; 0 always takes the likeliest token.", "0.8"))
    @click.option("--top-p", type=float, help=_own("Keep the likeliest tokens up to this probability.", "0.95"))
    @click.option("--top-k", type=int, help=_own("Keep this many tokens, 0 for all.", "40"))
    @click.option("--min-p", type=float, help=_own("Keep tokens this likely relative to the likeliest.", "0.05"))
    @click.option("--repeat-penalty", type=float, help=_own("Make recent tokens less likely, 1 for not at all.", "1"))
    @click.option("--seed", type=int, help="Same seed, same answer.")
    @click.option(
        "--logit-bias", multiple=True, metavar="ID=BIAS", help="Add to a token's logit, -100 bans it; may be repeated."
    )
    @functools.wraps(command)
    def wrapped(*args: Any, logit_bias: tuple[str, ...], **kwargs: Any) -> Any:
        names = [name for name in (*ANSWER_OPTIONS, *SAMPLING_OPTIONS) if name in kwargs]
        given = {_FIELDS.get(name, name): value for name in names if (value := kwargs.pop(name)) is not None}
        if logit_bias:
            given["logit_bias"] = dict(_bias(text) for text in logit_bias)
        return command(*args, answer=given, **kwargs)

    return wrapped


def _own(text: str, default: str) -> str:
    return f"{text}  [default: the model's own, or {default}]"


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError as error:
        raise UsageError(f"--logit-bias {text!r} is not ID=BIAS", hint="--logit-bias 198=-100") from error
