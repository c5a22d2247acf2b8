"""The Python API for applications: `edgeai.load` and the `Model` it returns. `edgeai.aio` is the same for asyncio."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from edgeai.artifact import Artifact
from edgeai.engines.base import Engine
from edgeai.engines.opening import open_engine
from edgeai.errors import ClosedError, UsageError
from edgeai.options import LoadOptions
from edgeai.paper import failed_notice
from edgeai.plan import Plan
from edgeai.schema import FORMS, constraint_of
from edgeai.transcript import Transcript
from edgeai.types import Chunk, Completion, GenerationConfig, Message, Notice, Prediction, Prompt, RouteOptions

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgeai.store import Store

__all__ = ["Methods", "Model", "Stream", "load", "open_engine"]

Done_co = TypeVar("Done_co", covariant=True)


def load(model: str | os.PathLike[str], **options: Any) -> Model:
    """Load MODEL, a path or the name of a pulled model, and return it ready to answer; OPTIONS are those of options.LoadOptions.

        with edgeai.load("smollm2") as m:
            print(m.chat([{"role": "user", "content": "Hi"}], max_tokens=64).text)

    `auto`, `auto:private`, `auto:quality` and `cloud/NAME` load a router (routing.router.Router), which lets this machine or a configured
    endpoint answer, and OPTIONS are of its local model; `local/NAME` is the model NAME. `draft` and the `adapters` may be paths or names as
    well. Raises UsageError for an option that there is not and for impossible values; ModelNotFound, InvalidModel, DoesNotFit,
    DeviceUnavailable or EngineCrashed, each with a hint.
    """
    from edgeai.store import Store, exists

    check_names(options, [field.name for field in fields(LoadOptions)])
    store, ref = Store.open(), _reference(model)
    if ref.startswith("local/") and not exists(Path(ref)):
        ref = ref.removeprefix("local/")
    routed = (ref == "auto" or ref.startswith(("auto:", "cloud/"))) and not exists(Path(ref))
    if options.get("draft") is not None:
        options["draft"] = store.find(_reference(options["draft"]))
    if options.get("adapters"):
        if not isinstance(options["adapters"], Mapping):
            raise UsageError(
                f"adapters {options['adapters']!r} are not possible", hint="adapters={'name': 'file.gguf'}"
            )
        options["adapters"] = {name: store.find(_reference(file)) for name, file in options["adapters"].items()}
    if routed:
        return load_router(ref, store, options)
    engine = open_engine(store.find(ref), **options)
    return Model(engine, sampling=store.sampling(ref))


def load_router(scope: str, store: Store, options: Mapping[str, Any]) -> Model:
    """Return the router of the user's configuration as a model; SCOPE is who may answer."""
    from edgeai.config import read_config
    from edgeai.routing.router import Router

    config = read_config()
    return Model(Router.open(config, scope=scope, **options), sampling=store.sampling(config.routing.local_model))


def _reference(model: Any) -> str:
    """Return the path or name MODEL as text. Raises UsageError for what is neither."""
    if not isinstance(model, str | os.PathLike):
        raise UsageError(f"{model!r:.60} is no model", hint="give a path or the name of a pulled model")
    return os.fsdecode(model)


def _file(path: Any) -> Path:
    """Return PATH as a Path. Raises UsageError for what is none."""
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"{path!r:.60} is no path", hint="give the path of a file")
    return Path(os.fsdecode(path))


def check_names(options: Iterable[str], known: Sequence[str]) -> None:
    """Raise UsageError for the first of OPTIONS that is not KNOWN, with the one that it may have been meant for."""
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"options are {', '.join(known)}"
            raise UsageError(f"there is no option {name!r}", hint=hint)


class Collectable(Protocol[Done_co]):
    """A stream: `collect` gives the whole answer, or something to await for it."""

    def collect(self) -> Done_co:
        """Read the stream to its end and return the whole answer."""


class Streaming(Protocol[Done_co]):
    """A model that answers in streams."""

    def stream(self, prompt: Prompt, **options: Any) -> Collectable[Done_co]:
        """Answer PROMPT piece by piece."""


class Methods:
    """What a model does however it is called: at once in a Model, after `await` in an AsyncModel."""

    def chat(self: Streaming[Done_co], messages: Sequence[Message], **options: Any) -> Done_co:
        """Answer MESSAGES through the model's chat template.

        Raises NoChatTemplate for a base model, IncompleteOutput for an answer that was cut before it had the form of its `constraint`.
        """
        if isinstance(messages, str):  # type: ignore[unreachable]  # for callers that do not check types
            raise UsageError("chat answers messages, and this is a text", hint='chat([{"role": "user", "content": …}])')
        return self.stream(messages, **options).collect()

    def complete(self: Streaming[Done_co], text: str, **options: Any) -> Done_co:
        """Continue TEXT. Raises IncompleteOutput as `chat` does."""
        if not isinstance(text, str):
            raise UsageError(
                f"complete continues a text, and this is a {type(text).__name__}", hint="chat answers messages"
            )
        return self.stream(text, **options).collect()


class Model(Methods):
    """A loaded model. One `Model` may be used from many threads at once; `close` it, or use it in a `with` block.

    `sampling` is what answers are sampled with unless a call says otherwise: what the catalogue says of the model, else what its file
    says, else the defaults of GenerationConfig. `notices` is what is less than could be expected of the model as it is loaded; every
    answer carries them among its warnings.
    """

    def __init__(self, engine: Engine, *, sampling: Mapping[str, float] | None = None) -> None:
        self.engine = engine
        self._closed = False
        self.sampling = {**file_sampling(engine.artifact), **(sampling or {})}
        failed = failed_notice(engine.artifact.path, engine.artifact.metadata)
        self._failed = () if failed is None else (failed,)

    @property
    def artifact(self) -> Artifact:
        """The facts of the model file."""
        return self.engine.artifact

    @property
    def plan(self) -> Plan:
        """How the model runs here."""
        return self.engine.plan

    @property
    def closed(self) -> bool:
        """Whether the model has been closed."""
        return self._closed

    @property
    def notices(self) -> tuple[Notice, ...]:
        """The warnings of the plan, and that the file failed its proof if it did."""
        return (*self.plan.notices, *self._failed)

    def config(self, **options: Any) -> GenerationConfig:
        """Return OPTIONS with this model's own sampling for what they leave open.

        OPTIONS are those of GenerationConfig, where `stop` may be one string; `schema`, `regex`, `grammar`, `choices` or `response_format`
        (see schema.constraint_of) make its constraint; `scope`, `policy`, `private`, `redact`, `resume_local` and `files` say who may
        answer where a router does (types.RouteOptions). Raises UsageError for an option that there is not, and for impossible values.
        """
        form = constraint_of(**{name: options.pop(name) for name in FORMS if name in options})
        if form is not None:
            if options.get("constraint") is not None:
                raise UsageError("a constraint and another form exclude each other", hint="an answer has one form")
            options["constraint"] = form
        routing = {name: options.pop(name) for name in ROUTING if name in options}
        check_names(options, [*(field.name for field in fields(GenerationConfig)), *FORMS, *ROUTING])
        if routing:
            options["route"] = self._route(routing, options.get("route"))
        if "stop" in options:
            stop = options["stop"]
            if not isinstance(stop, Iterable | None):
                raise UsageError(f"stop {stop!r} is not possible", hint="stop must be a text, or a list of texts")
            options["stop"] = (stop,) if isinstance(stop, str) else tuple(stop or ())
        return GenerationConfig(**{**self.sampling, **options})

    def _route(self, wanted: Mapping[str, Any], before: RouteOptions | None) -> RouteOptions:
        """Return WANTED as the options of a routed request. Raises UsageError where there is one model, which could not keep them."""
        asked = [name for name in wanted if name != "private"]  # which every model on this machine keeps
        if asked and self.engine.backend != "router":
            raise UsageError(f"{asked[0]} is for routed answers", hint='load("auto") lets a router answer')
        try:
            return replace(before or RouteOptions(), **wanted)
        except TypeError as error:
            raise UsageError(f"these options of a route are not possible: {wanted!r:.100}", hint=str(error)) from error

    def stream(self, prompt: Prompt, **options: Any) -> Stream:
        """Answer PROMPT (messages, or a text to be continued) piece by piece; OPTIONS are those of `config`."""
        return self.stream_config(prompt, self.config(**options))

    def stream_config(self, prompt: Prompt, config: GenerationConfig) -> Stream:
        """Answer PROMPT piece by piece with a CONFIG that is already made."""
        return Stream(self, prompt, config)

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Return the token ids of TEXT; special tokens written in it are plain text."""
        return self.open_engine().tokenize(text, add_special=add_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of IDS."""
        return self.open_engine().detokenize(ids)

    def score(self, text: str | Sequence[int]) -> list[float]:
        """Return the log-probability (nats) of each token of TEXT, or of token ids, after the first; a text of any length."""
        return self.open_engine().score(text)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return one vector of length 1 for each of TEXTS, (texts, dim) float32. Raises UsageError for a language model."""
        if isinstance(texts, str):
            raise UsageError("embed takes a list of texts, and this is one text", hint="embed([text])")
        if not isinstance(texts, Iterable):
            raise UsageError(f"{texts!r:.60} is no list of texts", hint="embed([text])")
        return self.open_engine().embed(texts)

    def rank(self, query: str, documents: Sequence[str]) -> list[float]:
        """Return how well each of DOCUMENTS answers QUERY, higher is better. Raises UsageError for a model that is no reranker."""
        return self.open_engine().rank(query, documents)

    def classify(self, items: Sequence[Any]) -> list[Prediction]:
        """Return what a classifier or regression says of each of ITEMS; of a file with rows, of each of its rows.

        An item is, as the model's file says, a picture (path, PIL image or array of uint8), a row or series (dict, list, numpy array, or
        the path of a CSV, TSV, JSON, JSONL or .npy file), a text (a pathlib.Path is a file with texts), or an array. An array of rows is a
        list of them. All rows and texts are read before any is computed. Raises UsageError with the place of what is wrong, and for
        other models.
        """
        if self._closed:  # not through `open_engine`: this call takes as long as some models
            raise self._gone()
        return self.engine.classify(items)

    def save_prompt(self, prompt: Prompt, path: str | os.PathLike[str]) -> int:
        """Compute PROMPT (messages or a text) once and keep its state in the file PATH; return how many tokens are in it.

        A system message alone is the usual one: another process then loads it, and the first token of each conversation with it comes at
        once. Where all streams share a KV cache it is computed while nothing else runs, so that it is exact. Raises ContextExceeded,
        OutputError, and UsageError as `load_prompt` does.
        """
        return self.open_engine().save_prompt(prompt, _file(path))

    def load_prompt(self, path: str | os.PathLike[str]) -> int:
        """Have later requests begin with the prompt that was saved to PATH, where they do; return its tokens.

        `usage.cached_tokens` of an answer says what was reused. Raises InvalidModel for a file that is damaged or was made with another
        model, chat template, KV type or native library; the model goes on without it. Raises UsageError where nothing may be kept, and for
        models with recurrent states, or with windows shorter than the prompt, unless they were loaded with `numerics="fast"`.
        """
        return self.open_engine().load_prompt(_file(path))

    def open_engine(self) -> Engine:
        """Return the engine. Raises ClosedError after `close`."""
        if self._closed:
            raise self._gone()
        return self.engine

    def _gone(self) -> ClosedError:
        return ClosedError(f"{self.artifact.name!r} has been closed", hint="load it again")

    def close(self) -> None:
        """End what runs and free the model; everything else raises ClosedError from now on. Calling it twice is fine."""
        self._closed = True
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


ROUTING = tuple(field.name for field in fields(RouteOptions))
"""Options of a request that say who may answer it."""

_FILE_KEYS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repeat_penalty",
}
"""`general.sampling.*` of a GGUF file (llama.cpp, llama-arch.cpp) → fields of GenerationConfig."""


def file_sampling(artifact: Artifact) -> dict[str, float]:
    """Return what the model file recommends to sample with; a value that is not possible is as good as none."""
    found: dict[str, float] = {}
    for key, name in _FILE_KEYS.items():
        value = artifact.metadata.get(f"general.sampling.{key}")
        if isinstance(value, (int, float)):
            with contextlib.suppress(UsageError):
                GenerationConfig(**{name: value})  # type: ignore[arg-type]
                found[name] = value
    return found


class Stream:
    """The chunks of an answer. Leaving its `with` block, or `cancel()`, stops the work; `collect` makes the whole answer.

    Every chunk that was read is kept, so `completion()` says at the end what came. After the model's `close` reading raises ClosedError.
    """

    def __init__(self, model: Model, prompt: Prompt, config: GenerationConfig) -> None:
        self._transcript = Transcript(model, config)
        self._chunks = model.open_engine().generate(prompt, config)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        if not self._chunks.ended:
            self._transcript.check_open()
        return self._transcript.add(next(self._chunks))

    def cancel(self) -> None:
        """Ask for the end; the last chunk then says `cancelled`."""
        self._transcript.cancelled = True
        self._chunks.cancel()

    def close(self) -> None:
        """Stop the work; nothing more will be read."""
        self._chunks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def collect(self) -> Completion:
        """Read the stream to its end and return the whole answer. Raises IncompleteOutput where it is not of the form asked for."""
        with self:
            for _ in self:
                pass
        return self._transcript.whole()

    def completion(self) -> Completion:
        """Return the answer, whole or cut, of a stream that has been read to its last chunk."""
        return self._transcript.completion()
