"""A native context that makes one row of numbers of each text: a vector, or the scores of a classifier."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from converters.header import GGUFHeader, read_header
from edgeai import native
from edgeai.artifact import Artifact
from edgeai.engines.llamacpp.abort import Aborted, AbortFlag
from edgeai.engines.llamacpp.batch import decode
from edgeai.engines.llamacpp.failures import decode_error
from edgeai.engines.llamacpp.weights import Weights
from edgeai.errors import EngineCrashed, InvalidModel
from edgeai.plan import Plan

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

__all__ = ["PooledContext", "Text", "batches"]

MAX_TEXTS = 64
"""Texts in one batch. libllama allows 256 sequences; the first buffer of outputs has one row of logits for each."""
OUTPUT_BYTES = 64_000_000
"""libllama keeps room for the logits of every token of a batch, also where none are computed (llama-context.cpp, output_reserve)."""
FEWEST_TOKENS, MOST_TOKENS = 128, 1024
"""Tokens that are worth computing at once: fewer leave cores waiting, more gain nothing."""
MICRO_BATCH = 512
"""Tokens of a causal model that are computed together; llama.cpp's default for n_ubatch."""
RANK, LAST = 4, 3  # enum llama_pooling_type, llama.h


@dataclass(frozen=True, slots=True)
class Text:
    """The tokens of a text; those from `second` on are its second segment, for models that were trained with two."""

    ids: Sequence[int]
    second: int | None = None


class PooledContext:
    """Owns a model and a context that pools. Not safe for concurrent use; `abort` alone may be called from any thread."""

    def __init__(self, artifact: Artifact, plan: Plan) -> None:
        """Load ARTIFACT. Raises InvalidModel for a reranker without its classifier, and what Weights raises."""
        header = read_header(artifact.path)
        _check_head(artifact, header)
        self.lib: Any = native.library()
        self._abort = AbortFlag(self.lib)
        self.context: Any = None
        self.batches = 0  # that were computed
        self.weights = Weights(artifact, plan)
        self.model = self.weights.model
        try:
            self.vocab = self.lib.llama_model_get_vocab(self.model)
            self.n_vocab = int(self.lib.llama_vocab_n_tokens(self.vocab))
            self.n_ctx = plan.context
            self.batch_tokens = max(FEWEST_TOKENS, min(MOST_TOKENS, OUTPUT_BYTES // (4 * self.n_vocab)))
            # Whole multiples of the sequences: libllama plans its memory for batches in which all are of one length, and aborts else.
            self.n_batch = -(-max(plan.context, self.batch_tokens) // MAX_TEXTS) * MAX_TEXTS
            causal = bool(artifact.metadata.get(f"{artifact.arch}.attention.causal", True))
            self.pooling = int(artifact.metadata.get(f"{artifact.arch}.pooling_type", 0))
            self._last_only = causal and self.pooling in (LAST, RANK)
            self._open(plan)
            if self._last_only and not self._memory:  # an encoder, whatever its file says of attention
                self.lib.llama_free(self.context)
                self._last_only = False
                self._open(plan)
        except BaseException:
            self.free()
            raise
        ranks = artifact.reranker
        self.width = int((self.lib.llama_model_n_cls_out if ranks else self.lib.llama_model_n_embd_out)(self.model))
        self._segments = _Segments(header) if ranks and "token_types.weight" in _names(header) else None

    def _open(self, plan: Plan) -> None:
        params = self.lib.llama_context_default_params()
        params.n_ctx = params.n_batch = self.n_batch
        # Attention without a causal mask, and a mean, need the whole text at once.
        params.n_ubatch = min(MICRO_BATCH, self.n_batch) if self._last_only else self.n_batch
        params.n_seq_max = MAX_TEXTS
        params.kv_unified = True  # one text may take all of it
        params.n_threads = params.n_threads_batch = plan.threads_batch or plan.threads
        params.embeddings = True
        params.abort_callback, params.abort_callback_data = self._abort.callback, self._abort.address
        self.context = None
        self.context = self.weights.open_context(params)
        self._memory = self.lib.llama_get_memory(self.context)

    def rows(self, texts: Sequence[Text]) -> F32:
        """Return what the model pools of each of TEXTS, one batch of `batches`, (texts, width). Raises Aborted, EngineCrashed."""
        import numpy as np

        if self._memory:
            self.lib.llama_memory_clear(self._memory, False)
        if self._last_only:
            self._read_all_but_the_last(texts)
            self._decode([Text(text.ids[-1:]) for text in texts], [len(text.ids) - 1 for text in texts])
        else:
            self._decode(texts, [0] * len(texts))
        found = np.empty((len(texts), self.width), np.float32)
        for at in range(len(texts)):
            pointer = self.lib.llama_get_embeddings_seq(self.context, at)
            if not pointer:
                raise EngineCrashed("the native library gave no vector", hint="edgeai doctor")
            found[at] = np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (self.width,))
        if not np.isfinite(found).all():
            raise EngineCrashed("the model gave a vector with a number that is not finite", hint="edgeai verify MODEL")
        return found

    def _read_all_but_the_last(self, texts: Sequence[Text]) -> None:
        """Put all tokens but the last of TEXTS into the KV cache: with causal attention only the last one has to give something.

        A batch that gives vectors computes the logits of all of its tokens too, which costs more than the layers of a small model.
        """
        if any(len(text.ids) > 1 for text in texts):
            self.lib.llama_set_embeddings(self.context, False)
            try:
                self._decode([Text(text.ids[:-1]) for text in texts], [0] * len(texts), outputs=0)
            finally:
                self.lib.llama_set_embeddings(self.context, True)

    def _decode(self, texts: Sequence[Text], starts: Sequence[int], outputs: int = 1) -> None:
        import numpy as np

        lengths = [len(text.ids) for text in texts]
        count = sum(lengths)
        assert 0 < count <= self.n_batch  # noqa: S101 - libllama aborts; `batches` keeps to it
        sequence = np.repeat(np.arange(len(texts)), lengths)
        position = np.concatenate([np.arange(at, at + size) for at, size in zip(starts, lengths, strict=True)])
        tokens = np.concatenate([np.asarray(text.ids, np.int32) for text in texts])
        vectors = None
        if self._segments is not None and any(text.second is not None for text in texts):
            vectors = np.concatenate([self._segments.rows(text) for text in texts])
        code = decode(self.lib, self.context, tokens, position, sequence, np.full(count, outputs), vectors)
        if code == 2:  # llama.h: aborted
            raise Aborted
        if code != 0:
            raise decode_error(code)
        self.batches += 1

    def abort(self) -> None:
        """End the batch that is running, or the next one, within one graph node. Thread-safe."""
        self._abort.set()

    def go_on(self) -> None:
        """Forget an abort."""
        self._abort.clear()

    def free(self) -> None:
        """Free context and model; safe to call twice."""
        if self.context:
            self.lib.llama_free(self.context)
            self.context = None
        self.weights.free()
        self.model = None


class _Segments:
    """The vectors of tokens in a second segment.

    libllama adds the vector of the first segment to every token of a BERT (src/models/bert.cpp: "token types are hardcoded to zero").
    So the tokens of such a batch go in as vectors, and those of the second segment bring the difference with them.
    """

    def __init__(self, header: GGUFHeader) -> None:
        from converters.imports.source import stored_tensors

        stored = stored_tensors(header)
        self._tokens = stored["token_embd.weight"]
        types = stored["token_types.weight"].rows(0, stored["token_types.weight"].shape[0])
        self._difference = types[1] - types[0] if len(types) > 1 else 0 * types[0]

    def rows(self, text: Text) -> F32:
        """Return the vectors of the tokens of TEXT, (tokens, dim)."""
        import numpy as np

        unique, place = np.unique(np.asarray(text.ids), return_inverse=True)
        found = np.concatenate([self._tokens.rows(int(token), int(token) + 1) for token in unique])[place]
        if text.second is not None:
            found[text.second :] += self._difference
        return np.ascontiguousarray(found, np.float32)


def batches(lengths: Sequence[int], most_tokens: int, most_texts: int = MAX_TEXTS) -> Iterator[list[int]]:
    """Yield the places of texts of LENGTHS tokens in groups, each computed at once: shortest first, of similar length.

    A group has at most MOST_TEXTS texts and MOST_TOKENS tokens; a text that is longer goes alone.
    """
    group: list[int] = []
    tokens = 0
    for at in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and (tokens + lengths[at] > most_tokens or len(group) == most_texts):
            yield group
            group, tokens = [], 0
        group.append(at)
        tokens += lengths[at]
    if group:
        yield group


def _names(header: GGUFHeader) -> set[str]:
    return {tensor.name for tensor in header.tensors}


def _check_head(artifact: Artifact, header: GGUFHeader) -> None:
    """Refuse a file that says it ranks and has nothing to do it with: libllama would return the first number of a vector."""
    if artifact.reranker and not _names(header) & {"cls.weight", "cls.output.weight"}:
        raise InvalidModel(
            f"{str(artifact.path)!r} says that it ranks, and has no classifier: neither 'cls.weight' nor 'cls.output.weight'",
            hint="convert the reranker again",
        )
