"""`edgeai run`: one answer, or a conversation."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeai.cli.form import FORM_OPTIONS, check_form, form_options
from edgeai.cli.machine import MACHINE_OPTIONS, load_options
from edgeai.cli.output import Output, human_bytes, is_terminal, output_options
from edgeai.cli.routing import ROUTE_OPTIONS, configured_model, late_notices, load_router, route_options, who
from edgeai.cli.sampling import ANSWER_OPTIONS, SAMPLING_OPTIONS, answer_options
from edgeai.cli.sections import SectionedCommand
from edgeai.errors import UsageError

if TYPE_CHECKING:
    from edgeai.model import Model
    from edgeai.types import Constraint, Prompt, Speculation

__all__ = ["run_command"]

READABLE = click.Path(exists=True, dir_okay=False, path_type=Path)

SECTIONS = {
    "Prompt": ("system", "files", "raw"),
    "Answer": (*ANSWER_OPTIONS, *FORM_OPTIONS),
    "Sampling": SAMPLING_OPTIONS,
    "Routing": ROUTE_OPTIONS,
    "Model and machine": MACHINE_OPTIONS,
}


@click.command("run", cls=SectionedCommand, sections=SECTIONS, short_help="Answer a prompt, or chat.")
@click.argument("model", required=False)
@click.argument("prompts", metavar="[PROMPT]...", nargs=-1)
@click.option("-s", "--system", help="System message.")
@click.option(
    "-f", "--file", "files", multiple=True, type=READABLE, help="Add a text file to the prompt; may be repeated."
)
@click.option("--raw", is_flag=True, help="Complete the prompt as it is, without a chat template.")
@answer_options
@form_options
@route_options
@load_options
@click.option("--pull", is_flag=True, help="Pull the model first if it is not here.")
@output_options
def run_command(
    model: str | None,
    prompts: tuple[str, ...],
    system: str | None,
    files: tuple[Path, ...],
    raw: bool,
    answer: dict[str, Any],
    form: Constraint | None,
    routing: dict[str, Any],
    load: dict[str, Any],
    lora: tuple[tuple[str, float], ...],
    pull: bool,
    out: Output,
) -> None:
    """Answer PROMPT with MODEL: a pulled model's name, or the path of a .gguf or .onnx file.

    Piped text is added to the prompt. Without a prompt, on a terminal, this is a chat. An embedding model prints the vector of PROMPT.
    A classifier takes pictures, files with rows (.csv, .tsv, .json, .jsonl, .npy) or texts, any number of them, and says what they are.

    MODEL may also be a route: auto lets the local model or a configured endpoint answer, cloud/NAME an endpoint. What is private stays on
    this machine; `edgeai route PROMPT --explain` says beforehand what would happen.
    """
    from edgeai.cli.answer import answer_once
    from edgeai.cli.chat import Chat
    from edgeai.options import LoadOptions
    from edgeai.store import Store
    from edgeai.types import GenerationConfig

    model, prompts = who(model, prompts, routing)
    if "route" not in routing:
        refuse_route_options(routing)
    if model and (classifier := classifier_path(model)) is not None:
        if "route" in routing:
            raise UsageError(f"{classifier.stem} is no language model", hint="leave out --route")
        from edgeai.cli.classify import classify

        refuse_answer_options(classifier.stem, "has labels or values and no answers")
        with load_model(classifier, load, out) as loaded:
            classify(loaded, prompts, files, out)
        return
    if len(prompts) > 1:
        raise UsageError(
            f"there are {len(prompts)} prompts, {prompts[0]!r:.40} and {prompts[1]!r:.40}",
            hint="put a prompt of several words in quotes",
        )
    prompt = prompts[0] if prompts else None
    answer |= {"adapters": lora, "speculation": speculation(answer, load)}
    GenerationConfig(**answer)  # fails before the model loads
    LoadOptions(**load)
    for word in answer["stop"]:
        check_text(word, "the stop text")
    if answer.get("logprobs") is not None and not out.as_json:
        raise UsageError("--logprobs are shown in JSON only", hint="add --json")
    text = gather_prompt(prompt, files)
    if text is None and out.as_json:
        raise UsageError("--json needs a prompt", hint=f'edgeai run {model} "PROMPT" --json')
    check_form(form, text)
    path = None if "route" in routing else locate(model, pull=pull, out=out)
    if text is not None:
        # Every token is at least one byte, so an answer to this prompt can never need more than this.
        system_bytes = check_text(system or "", "the system message").encode()
        load["needed"] = len(text.encode()) + len(system_bytes) + answer["max_tokens"]
    if path is None:
        routed(model, routing, load, files, text, system, raw, form, answer, pull, out)
        return
    with load_model(path, load, out) as loaded:
        if loaded.artifact.embedding:
            embed(loaded, text, out)
            return
        loaded.sampling |= Store.open().sampling(model)
        config = loaded.config(constraint=form, **answer)
        if text is None:
            Chat(loaded, config, system, out).loop()
        else:
            answer_once(loaded, make_prompt(loaded, text, system, raw, out), config, out)


def routed(
    model: str, routing: dict[str, Any], load: dict[str, Any], files: tuple[Path, ...], text: str | None, system: str | None,
    raw: bool, form: Constraint | None, answer: dict[str, Any], pull: bool, out: Output,
) -> None:  # fmt: skip
    """Answer TEXT, or chat, through the router."""
    from edgeai.cli.answer import answer_once
    from edgeai.cli.chat import Chat

    if pull:
        locate(model or configured_model(), pull=True, out=out)
    loaded, options = load_router(model, routing, load, {str(path): read_text(path) for path in files})
    out.explain = "explain" in routing
    with loaded:
        config = loaded.config(constraint=form, **answer).with_(route=options)
        if text is None:
            Chat(loaded, config, system, out).loop()
        else:
            answer_once(loaded, make_prompt(loaded, text, system, raw, out), config, out)
    out.warn(late_notices(loaded))


def refuse_route_options(routing: Mapping[str, Any]) -> None:
    """Raise UsageError for the first option of a route where there is none: one model answers, and it is on this machine."""
    for name in routing:
        if name != "private":  # it is kept
            written = f"--{name.replace('_', '-')}"
            raise UsageError(f"{written} is for routed answers", hint=f"add --route auto, or leave out {written}")


def speculation(answer: Mapping[str, Any], load: Mapping[str, Any]) -> Speculation:
    """Return where guesses come from. Raises UsageError where the options contradict each other."""
    wanted: Speculation | None = answer.get("speculation")
    if wanted == "draft" and "draft" not in load:
        raise UsageError("--speculative draft needs a model that guesses", hint="--draft MODEL")
    if wanted == "lookup" and "draft" in load:
        raise UsageError("--draft and --speculative lookup exclude each other", hint="leave one of them out")
    return wanted or ("draft" if "draft" in load else "off")


FOR_ANSWERS = ("system", "raw", *ANSWER_OPTIONS, *SAMPLING_OPTIONS, *FORM_OPTIONS)
"""Options that mean nothing to an embedding model or a classifier."""


def classifier_path(model: str) -> Path | None:
    """Return the path of MODEL if it is an ONNX file of something else than a language or embedding model, else None."""
    from edgeai.store import Store, exists, looks_like_path

    path = Path(model)
    if path.suffix.lower() == ".onnx":
        path = Store.open().find(model)
    elif not looks_like_path(model):
        path = Store.open().path_of(model) or path
    if path.suffix.lower() != ".onnx" and not exists(path / "model.onnx"):
        return None
    from edgeai.artifact import open_artifact

    return None if open_artifact(path).task in ("generation", "embedding", "ranking") else path


def refuse_answer_options(name: str, what: str) -> None:
    """Raise UsageError for the first option that the model NAME, of which WHAT is said, would ignore."""
    context = click.get_current_context()
    for option in FOR_ANSWERS:
        if context.get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE:
            written = f"--{option.replace('_', '-')}"
            raise UsageError(f"{name} {what}, and {written} is for answers", hint=f"leave {written} out")


def embed(loaded: Model, text: str | None, out: Output) -> None:
    """Print the vector of TEXT. Raises UsageError for an option that would be ignored, and where there is no text."""
    from edgeai.cli.embed import embed_once

    refuse_answer_options(loaded.artifact.name, "is an embedding model")
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


def load_model(path: Path, options: Mapping[str, Any], out: Output) -> Model:
    """Load the model at PATH with OPTIONS of options.LoadOptions and say in one line how it runs."""
    from edgeai.model import Model, open_engine

    engine = open_engine(path, streams=1, **options)
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
    where = f"CUDA {plan.gpu_layers} layers" if plan.gpu_layers else f"{plan.device.upper()} {plan.threads} threads"
    if artifact.format == "onnx" and not plan.context:
        return f"{artifact.name} {artifact.quant} · {where} · loaded {loaded.engine.load_s:.1f} s"
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
