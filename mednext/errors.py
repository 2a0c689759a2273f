"""The one error of the command line: what a person passed cannot be used."""


class InputError(ValueError):
    """A file, folder or option cannot be used. The message is one sentence that says what was passed and what to do.

    The command line prints it without a traceback and exits with code 2.
    """
