"""The last paragraph of a help page: an example that can be pasted into a shell."""


def example(command_line: str) -> str:
    """Return the epilog of a command's help page with `command_line` as its example.

    The line must parse: a test runs every example through the command's own parser.
    """
    return f"\b\nExample:\n  {command_line}"  # \b keeps click from joining the lines
