"""Errors for the person at the command line. The command prints the message and exits with `exit_status`."""


class UserError(ValueError):
    """The caller gave something wrong. The message is one line: what is wrong, what it got, what to do."""

    exit_status = 2

    def __init__(self, message: str) -> None:
        # A message that quotes a library's may have several lines.
        super().__init__(" ".join(line.strip() for line in message.splitlines()))


class DivergedError(RuntimeError):
    """The loss of a training run is not finite."""

    exit_status = 3


class Preempted(RuntimeError):
    """A training run was told to stop and saved its state. The same command resumes it."""

    exit_status = 75  # EX_TEMPFAIL of sysexits.h: try again
