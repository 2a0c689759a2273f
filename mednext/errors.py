"""The one error of the command line: what a person passed cannot be used. And how it quotes other errors."""


class InputError(ValueError):
    """A file, folder or option cannot be used. The message is one sentence that says what was passed and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """What a library's error says, as far as it fits into a sentence of ours."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
