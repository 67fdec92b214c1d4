"""Errors for the person at the command line. The command prints the message and exits with `exit_status`."""


class UserError(ValueError):
    """An argument, option or file is wrong. The message is one line: the problem, the value found, the remedy."""

    exit_status = 2

    def __init__(self, message: str) -> None:
        # A message that quotes another library's message may have several lines.
        super().__init__(" ".join(line.strip() for line in message.splitlines()))


class DivergedError(RuntimeError):
    """The loss of a training run is not finite."""

    exit_status = 3


class Preempted(RuntimeError):
    """A training run was told to stop and saved its state. The same command resumes it."""

    exit_status = 75  # EX_TEMPFAIL of sysexits.h: try again
    signal = "SIGTERM"


class Interrupted(KeyboardInterrupt):
    """Ctrl+C stopped a training run, which saved its state. The same command resumes it."""

    exit_status = 130
    signal = "Ctrl+C"
