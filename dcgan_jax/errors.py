"""Errors that speak to the person at the command line, which prints the message and exits with `exit_status`."""


class UserError(ValueError):
    """Something the caller gave is wrong; the message is one line that says what, where and what to do."""

    exit_status = 2

    def __init__(self, message: str):
        super().__init__(" ".join(line.strip() for line in message.splitlines()))  # what a library says may be several


class DivergedError(RuntimeError):
    """A training run met a loss that is not finite."""

    exit_status = 3


class Preempted(RuntimeError):
    """A training run was asked to stop, and has saved its state: the same command goes on."""

    exit_status = 75  # EX_TEMPFAIL of sysexits.h: start me again
