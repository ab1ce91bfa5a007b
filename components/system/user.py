"""The name of the person who runs a command, for records such as the promotion log."""

import getpass
import os


def user_name() -> str:
    """Return the login name, or the numeric id where the system knows no name for it, as in a container with any user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"uid {os.getuid()}"
