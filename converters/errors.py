"""The root of the error tree and the errors of the converters.

    EdgeAIError                 1   the root: a message with the value in it, a hint, an exit code
    ├── ConvertError            3   a source cannot be converted
    │   ├── BrokenCheckpoint    3   the folder or file is damaged or incomplete
    │   ├── UnsupportedModel    3   its family, tokenizer or shape is not known here
    │   └── TokenizerMismatch   9   the converted tokenizer gives other ids than the source's
    ├── InvalidModel            3   a model file is damaged, truncated or not one at all
    ├── OutputError             2   the output path cannot be written, or is the input
    └── WrongChoice             2   what was asked for does not exist or does not fit this model

`edgeai.errors` continues the tree. The root lives here because `converters` is the lowest layer.
"""


class EdgeAIError(Exception):
    """An expected failure: what happened with which value, what to do about it, and the process's exit code."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConvertError(EdgeAIError):
    """The source cannot be converted."""

    exit_code = 3


class BrokenCheckpoint(ConvertError):
    """A checkpoint folder is damaged or incomplete."""


class UnsupportedModel(ConvertError):
    """The model's family, tokenizer or shape is not one that the converters know."""


class TokenizerMismatch(ConvertError):
    """The converted tokenizer does not give the token ids of the source tokenizer."""

    exit_code = 9


class InvalidModel(EdgeAIError):
    """A model file is damaged, truncated or not a model file at all."""

    exit_code = 3


class OutputError(EdgeAIError):
    """The output path cannot be written, or names the input."""

    exit_code = 2


class WrongChoice(EdgeAIError):
    """What was asked for does not exist, or does not fit this model."""

    exit_code = 2
