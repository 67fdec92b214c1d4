"""The command `serve`: a page in the browser on which photographs are completed."""

import argparse
import socket
import sys

from dcgan_jax.errors import UserError
from dcgan_jax.priors.files import packaged_priors

_LOCAL = ("127.0.0.1", "localhost")


def run(options: argparse.Namespace) -> int:
    """Serves the page until it is interrupted."""
    try:
        import uvicorn

        from dcgan_jax.command.serve.application import application
    except ImportError as error:
        raise UserError(f"the page needs {error.name}: pip install 'dcgan-jax[serve]'") from error
    if not 0 <= options.port < 2**16:
        raise UserError(f"`port` is {options.port}; it takes 0 to 65535")
    from dcgan_jax.command.serve.completing import Completer

    completer = Completer(list(dict.fromkeys([options.prior, *packaged_priors()])))
    completer.prior(options.prior)  # a wrong one is named before the page opens
    hosts = _LOCAL if options.host in _LOCAL else ("*",)
    if options.host not in _LOCAL:
        print(f"dcgan-jax: everybody who reaches {options.host} can use this page", file=sys.stderr)
    try:
        listener = socket.create_server((options.host, options.port))
    except OSError as error:
        problem = error.strerror or str(error)
        raise UserError(
            f"{options.host}:{options.port} cannot be used ({problem}): give another `host` or `port`"
        ) from error
    server = uvicorn.Server(uvicorn.Config(application(completer, hosts), log_level="warning", lifespan="off"))
    with listener:
        print(f"http://{options.host}:{listener.getsockname()[1]}  (Ctrl+C ends it)", flush=True)
        server.run(sockets=[listener])
    return 0
