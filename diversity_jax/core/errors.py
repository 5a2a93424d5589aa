"""The one exception that means "what you gave us is wrong"."""


class InputError(ValueError):
    """Bad input from outside: a path, a file's content, a setting, an answer of a server.

    The message is one line that says what is wrong, where (file and line, or configuration field) and what to do
    about it. Entry points print that line and exit with status 2; a traceback means a defect of this project.
    """
