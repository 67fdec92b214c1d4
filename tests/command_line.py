"""The command `dcgan-jax` in the test's own process."""

from dcgan_jax.command import main as main_module


def main(*arguments):
    """Runs the command with the arguments as strings and returns its exit status."""
    return main_module.main([str(argument) for argument in arguments])
