"""`edgeai run`: one answer, or a conversation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeai.cli.form import FORM_OPTIONS, check_form, form_options
from edgeai.cli.output import Output, human_bytes, is_terminal, output_options
from edgeai.errors import UsageError

if TYPE_CHECKING:
    from edgeai.model import Model
    from edgeai.types import Constraint, Prompt

__all__ = ["run_command"]

READABLE = click.Path(exists=True, dir_okay=False, path_type=Path)
DEFAULT_MAX_TOKENS = 1024
"""An answer ends here unless --max-tokens says otherwise: a small model that repeats itself must not run for ever."""


@click.command("run", short_help="Answer a prompt, or chat.")
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("-s", "--system", help="System message.")
@click.option(
    "-f", "--file", "files", multiple=True, type=READABLE, help="Add a text file to the prompt; may be repeated."
)
@click.option("--raw", is_flag=True, help="Complete the prompt as it is, without a chat template.")
@click.option("-n", "--max-tokens", type=int, default=DEFAULT_MAX_TOKENS, show_default=True, help="Longest answer.")
@click.option(
    "--temp", type=float, help="Temperature; 0 always takes the likeliest token.  [default: the model's own, or 0.8]"
)
@click.option(
    "--top-p", type=float, help="Keep the likeliest tokens up to this probability.  [default: the model's own, or 0.95]"
)
@click.option("--top-k", type=int, help="Keep this many tokens, 0 for all.  [default: the model's own, or 40]")
@click.option(
    "--min-p",
    type=float,
    help="Keep tokens this likely relative to the likeliest.  [default: the model's own, or 0.05]",
)
@click.option("--seed", type=int, help="Same seed, same answer.")
@click.option("--stop", multiple=True, help="End the answer before this text; may be repeated.")
@form_options
@click.option("--ctx", type=int, help="Context in tokens, the answer included.")
@click.option("--threads", type=int, help="CPU threads.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--pull", is_flag=True, help="Pull the model first if it is not here.")
@output_options
def run_command(
    model: str,
    prompt: str | None,
    system: str | None,
    files: tuple[Path, ...],
    raw: bool,
    max_tokens: int,
    temp: float | None,
    top_p: float | None,
    top_k: int | None,
    min_p: float | None,
    seed: int | None,
    stop: tuple[str, ...],
    form: Constraint | None,
    ctx: int | None,
    threads: int | None,
    device: str,
    pull: bool,
    out: Output,
) -> None:
    """Answer PROMPT with MODEL: a pulled model's name, or the path of a .gguf file.

    Piped text is added to the prompt. Without a prompt, on a terminal, this is a chat. An embedding model prints the vector of PROMPT.
    """
    from edgeai.cli.answer import answer_once
    from edgeai.cli.chat import Chat
    from edgeai.store import Store
    from edgeai.types import GenerationConfig

    sampling = {"temperature": temp, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    given = {key: value for key, value in sampling.items() if value is not None}
    GenerationConfig(max_tokens=max_tokens, seed=seed, stop=stop, **given)  # type: ignore[arg-type]  # fails before the model loads
    for word in stop:
        check_text(word, "the stop text")
    text = gather_prompt(prompt, files)
    if text is None and out.as_json:
        raise UsageError("--json needs a prompt", hint=f'edgeai run {model} "PROMPT" --json')
    check_form(form, text)
    path = locate(model, pull=pull, out=out)
    # Every token is at least one byte, so an answer to this prompt can never need more than this.
    needed = (
        None
        if text is None
        else len(text.encode()) + len(check_text(system or "", "the system message").encode()) + max_tokens
    )
    with load_model(path, ctx=ctx, needed=needed, threads=threads, device=device, out=out) as loaded:
        if loaded.artifact.embedding:
            embed(loaded, text, out)
            return
        loaded.sampling |= Store.open().sampling(model)
        config = loaded.config(max_tokens=max_tokens, seed=seed, stop=stop, constraint=form, **given)
        if text is None:
            Chat(loaded, config, system, out).loop()
        else:
            answer_once(loaded, make_prompt(loaded, text, system, raw, out), config, out)


FOR_ANSWERS = ("system", "raw", "max_tokens", "temp", "top_p", "top_k", "min_p", "seed", "stop", *FORM_OPTIONS)
"""Options that mean nothing to an embedding model."""


def embed(loaded: Model, text: str | None, out: Output) -> None:
    """Print the vector of TEXT. Raises UsageError for an option that would be ignored, and where there is no text."""
    from edgeai.cli.embed import embed_once

    context = click.get_current_context()
    for name in FOR_ANSWERS:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{loaded.artifact.name} is an embedding model, and {option} is for answers", hint=f"leave {option} out"
            )
    if text is None:
        raise UsageError(
            f"{loaded.artifact.name} is an embedding model and needs a text", hint='edgeai run MODEL "TEXT"'
        )
    embed_once(loaded, text, out)


def gather_prompt(prompt: str | None, files: tuple[Path, ...]) -> str | None:
    """Return the prompt with piped text and files after it, or None when there is none of them and a terminal to ask."""
    parts = [prompt] if prompt else []
    parts += [read_text(path) for path in files]
    piped = not is_terminal(sys.stdin)
    if piped and sys.stdin is not None:
        try:
            parts.append(sys.stdin.read())
        except UnicodeDecodeError as error:
            raise UsageError(
                "what is piped in is not UTF-8 text", hint=f"byte {error.start}: {error.reason}"
            ) from error
    text = "\n\n".join(part.strip("\n") for part in parts if part.strip())
    if text:
        return check_text(text, "the prompt")
    if piped or prompt is not None or files:
        raise UsageError("the prompt is empty", hint='edgeai run MODEL "PROMPT"')
    return None


def check_text(text: str, what: str) -> str:
    """Return TEXT. Raises UsageError when it holds bytes that were no UTF-8, which Python keeps as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{what} is not UTF-8 text", hint=f"character {error.start}: {text[error.start]!r}") from error
    return text


def read_text(path: Path) -> str:
    """Return the text of a file. Raises UsageError for one that is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{str(path)!r} is not UTF-8 text", hint=f"byte {error.start}: {error.reason}") from error
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be read: {error.strerror}") from error


def locate(model: str, *, pull: bool, out: Output) -> Path:
    """Return the path of MODEL; one that only the catalogue knows is pulled if the user agrees."""
    from edgeai.store import Store, exists

    store = Store.open()
    if store.path_of(model) is not None or exists(Path(model)) or (entry := store.entry(model)) is None:
        return store.find(model)  # what is here needs no look into the catalogue
    on_terminal = is_terminal(sys.stdin) and is_terminal(sys.stderr)
    question = f"{entry.name} is not here; pull {human_bytes(entry.size_bytes)} now?"
    if pull or (on_terminal and click.confirm(question, default=True, err=True)):
        path = store.pull(model, out.progress)
        out.end_progress()
        return path
    return store.find(model)


def load_model(
    path: Path, *, ctx: int | None, needed: int | None, threads: int | None, device: str, out: Output
) -> Model:
    """Load the model at PATH and say in one line how it runs."""
    from edgeai.model import Model, open_engine

    engine = open_engine(path, ctx=ctx, needed=needed, threads=threads, device=device, streams=1)
    loaded = Model(engine)
    try:
        out.warn(loaded.notices)
        if is_terminal(sys.stderr) or out.verbose:
            out.note(load_line(loaded))
    except BaseException:
        loaded.close()
        raise
    return loaded


def load_line(loaded: Model) -> str:
    """Return one line like `smollm2 Q4_1 · CPU 2 threads · ctx 8192 · 0.3 GB · loaded 0.1 s`."""
    artifact, plan = loaded.artifact, loaded.plan
    where = f"CUDA {plan.gpu_layers} layers" if plan.device == "cuda" else f"CPU {plan.threads} threads"
    size = f"{plan.memory_bytes / 1e9:.1f} GB"
    return f"{artifact.name} {artifact.quant} · {where} · ctx {plan.context} · {size} · loaded {loaded.engine.load_s:.1f} s"


def make_prompt(loaded: Model, text: str, system: str | None, raw: bool, out: Output) -> Prompt:
    """Return TEXT as messages, or as it is for --raw and for a base model (which is said)."""
    from edgeai.types import Message, Notice

    if raw and system:
        raise UsageError("--system and --raw exclude each other", hint="a raw prompt is completed as it is")
    if raw:
        return text
    if loaded.artifact.template is None and system is None:
        message = (
            f"{loaded.artifact.name} has no chat template: completing the prompt as it is (--raw says so beforehand)"
        )
        out.warn([Notice(code="completion-mode", message=message)])
        return text
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": text}]
