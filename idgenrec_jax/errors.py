"""The one exception a user is meant to read."""


class InputError(ValueError):
    """A mistake in what the user gave: a file, a line, a flag.

    The message is one line that names the place, what was found, what was expected and the way out. The launch
    programs print it as `error: ...` and exit with status 2, without a traceback.
    """
