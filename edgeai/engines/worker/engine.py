"""The engine that runs elsewhere: what kills native code kills a child process, and this one goes on."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeai.artifact import Artifact
from edgeai.engines.streaming import ChunkStream
from edgeai.engines.waiting import outcome
from edgeai.engines.worker.limits import Limits
from edgeai.engines.worker.process import CHILD
from edgeai.engines.worker.request import Request
from edgeai.engines.worker.supervisor import Loaded, Supervisor
from edgeai.options import LoadOptions
from edgeai.plan import Plan
from edgeai.types import GenerationConfig, Prediction, Prompt

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgeai.engines.llamacpp.scheduler import Stats
    from edgeai.engines.onnx.classifier import Classifier

__all__ = ["WorkerEngine"]


class WorkerEngine:
    """A model in a supervised child process; see engines.base.Engine for what the methods promise.

    Every method that asks the model raises EngineCrashed when the child dies or hangs over it. The child is then started again: requests
    that it had not begun, and those that come meanwhile, wait for the next one. After too many crashes in a row it stays down and every
    call says why. `plan` and `backend` are those of the child that runs now. A forgotten engine ends its child, as a closed one does.
    """

    def __init__(
        self, artifact: Artifact, options: LoadOptions, *, limits: Limits | None = None, module: str = CHILD
    ) -> None:
        self.artifact = artifact
        self._classifier: Classifier | None = None
        path = artifact.path.absolute()
        self._supervisor = Supervisor(artifact.name, path, _anywhere(options), limits=limits or Limits(), module=module)
        weakref.finalize(self, self._supervisor.shut)
        try:
            self.load_s = self._supervisor.wait_until_loaded().load_s
        except BaseException:  # a Ctrl-C too
            self.close()
            raise

    @property
    def plan(self) -> Plan:
        """How the model runs, as planned by the child."""
        return self._loaded.plan

    @property
    def backend(self) -> str:
        """What really computes, as the child has read it back."""
        return self._loaded.backend

    @property
    def _loaded(self) -> Loaded:
        loaded = self._supervisor.loaded
        assert loaded is not None  # noqa: S101 - the constructor waits for it
        return loaded

    @property
    def pid(self) -> int | None:
        """The process id of the child; None while there is none."""
        return self._supervisor.pid

    @property
    def restarts(self) -> int:
        """How often the child has been started again."""
        return self._supervisor.restarts

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Return the token ids of TEXT."""
        found: list[int] = self._call("tokenize", text, add_special=add_special, parse_special=parse_special)
        return found

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of IDS."""
        found: str = self._call("detokenize", list(ids))
        return found

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return the token ids that PROMPT becomes."""
        found: list[int] = self._call("prompt_ids", _plain(prompt))
        return found

    def score(self, text: str | Sequence[int], adapters: Sequence[tuple[str, float]] = ()) -> list[float]:
        """Return the log-probability (nats) of each token of TEXT, or of token ids, after the first."""
        named = {"adapters": tuple(adapters)} if adapters else {}
        found: list[float] = self._call("score", text if isinstance(text, str) else list(text), **named)
        return found

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return one vector of length 1 for each of TEXTS, (texts, dim) float32."""
        found: npt.NDArray[np.float32] = self._call("embed", texts if isinstance(texts, str) else list(texts))
        return found

    def rank(self, query: str, documents: Sequence[str]) -> list[float]:
        """Return how well each of DOCUMENTS answers QUERY, higher is better."""
        documents = documents if isinstance(documents, str) else list(documents)
        found: list[float] = self._call("rank", query, documents)
        return found

    def classify(self, items: Sequence[Any]) -> list[Prediction]:
        """Return what the model says of each of ITEMS. They become arrays here; the child computes."""
        if self._classifier is None:
            from edgeai.engines.onnx.classifier import check_task, classifier_of

            check_task(self.artifact)
            self._classifier = classifier_of(self.artifact, self._call("ports"))
        batch = self.plan.batch
        return self._classifier.classify(items, lambda feed: self._call("infer", feed), batch)

    def save_prompt(self, prompt: Prompt, path: Path) -> int:
        """Compute PROMPT once and keep its state in the file PATH; return its tokens."""
        found: int = self._call("save_prompt", _plain(prompt), path.absolute())
        return found

    def load_prompt(self, path: Path) -> int:
        """Make the prompt in the file PATH part of what later requests begin with, until the child has to be started again."""
        found: int = self._call("load_prompt", path.absolute())
        return found

    def stats(self) -> Stats:
        """Return what the engine in the child is doing. Raises UsageError for an embedding model."""
        from edgeai.engines.llamacpp.scheduler import Stats

        return Stats(**self._call("stats"))

    def generate(self, prompt: Prompt, config: GenerationConfig) -> ChunkStream:
        """Answer PROMPT; what the child checks before it begins is raised here."""
        supervisor = self._supervisor
        request = supervisor.submit("generate", (_plain(prompt), config))
        _wait(supervisor, request)
        assert request.chunks is not None  # noqa: S101 - a generation has them
        return ChunkStream(request.chunks, lambda: supervisor.cancel(request))

    def close(self) -> None:
        """End the child, which gives all of its memory back; running generations end as cancelled."""
        self._supervisor.shut()
        self._supervisor.join()

    def _call(self, method: str, *arguments: Any, **named: Any) -> Any:
        supervisor = self._supervisor
        return _wait(supervisor, supervisor.submit("call", (method, arguments, named)))


def _wait(supervisor: Supervisor, request: Request) -> Any:
    return outcome(request.answer, lambda: supervisor.cancel(request))


def _plain(prompt: Prompt) -> str | list[Any]:
    return prompt if isinstance(prompt, str) else list(prompt)


def _anywhere(options: LoadOptions) -> LoadOptions:
    """Return OPTIONS with paths that hold wherever the child is started, now or after a crash."""
    adapters = {name: path.absolute() for name, path in options.adapters.items()}
    draft = None if options.draft is None else options.draft.absolute()
    return replace(options, adapters=adapters, draft=draft, isolated=False)
