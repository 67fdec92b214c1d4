"""The web application of `dcgan-jax serve`. It keeps no photograph, and serves one completion at a time."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from dcgan_jax.command.serve.completing import Completer, Order, as_picture, read_hole, read_photograph
from dcgan_jax.errors import UserError
from dcgan_jax.images.figures import png

_STATIC = Path(__file__).with_name("static")
_LARGEST = 64 * 2**20  # bytes of a request
_HEADERS = {
    # Nothing comes from elsewhere, and nothing stays in the browser's cache.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:",
    "Cache-Control": "no-store",
}


def application(completer: Completer, hosts: Sequence[str]) -> Starlette:
    """Makes the application.

    Args:
        completer: completes the photographs.
        hosts: names by which the page may be called. Others are refused, so that no foreign page reaches this one.
    """
    turn = asyncio.Lock()  # one search at a time has the whole machine
    waiting: list[object] = []

    async def page(request: Request) -> Response:
        return FileResponse(_STATIC / "page.html", headers=_HEADERS)

    async def options(request: Request) -> Response:
        presets = {name: completer.presets(name) for name in completer.names}
        return JSONResponse({"priors": completer.names, "presets": presets}, headers=_HEADERS)

    async def open_photograph(form: FormData) -> dict[str, Any]:
        name, data = await _file(form, "photograph")
        picture = await run_in_threadpool(read_photograph, name, data)
        shown = {"picture": _encoded(png(picture.pixels, picture.profile)), "note": picture.note or ""}
        if picture.transparent is not None:
            shown |= {"mask": _encoded(png(as_picture(picture.transparent))), "missing": int(picture.transparent.sum())}
        return shown

    async def open_mask(form: FormData) -> dict[str, Any]:
        mask = await run_in_threadpool(read_hole, *await _file(form, "mask"))
        height, width = mask.hole.shape
        return {
            "mask": _encoded(png(as_picture(mask.hole))),
            "width": width,
            "height": height,
            "missing": int(mask.hole.sum()),
            "note": mask.note or "",
        }

    async def find_region(form: FormData) -> dict[str, Any]:
        plan = await run_in_threadpool(completer.plan, await _order(form))
        (task,) = plan.tasks
        return {"region": list(task.region), "note": task.note or ""}

    async def complete(request: Request) -> Response:
        try:
            async with _form(request) as form:
                order = await _order(form)
        except UserError as error:
            return _refusal(error)
        return StreamingResponse(_lines(order), media_type="application/x-ndjson", headers=_HEADERS)

    async def _lines(order: Order) -> AsyncIterator[bytes]:
        """Yields a line of JSON for each stage of a completion, the last with its pictures."""
        me = object()
        waiting.append(me)
        try:
            if turn.locked():
                yield _line({"stage": "waiting", "before": len(waiting) - 1})
            async with turn:
                yield _line({"stage": "searching" if completer.is_compiled(order) else "compiling"})
                done = await run_in_threadpool(completer.complete, order)
                pictures = [_encoded(png(image, done.profile)) for image in done.images]
                mean = None if done.mean is None else _encoded(png(done.mean, done.profile))
                line = {"stage": "done", "images": pictures, "mean": mean, "region": list(done.region)}
                yield _line(line | {"note": done.note})
        except UserError as error:
            yield _line({"stage": "failed", "problem": str(error)})
        finally:
            waiting.remove(me)

    routes = [
        Route("/", page),
        Route("/options", options),
        Route("/photograph", _answer(open_photograph), methods=["POST"]),
        Route("/mask", _answer(open_mask), methods=["POST"]),
        Route("/region", _answer(find_region), methods=["POST"]),
        Route("/complete", complete, methods=["POST"]),
        Mount("/static", StaticFiles(directory=_STATIC)),
    ]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))])


def _answer(function: Callable[[FormData], Awaitable[dict[str, Any]]]) -> Callable[[Request], Awaitable[Response]]:
    """Answers a form by JSON, and wrong input by a message for the page."""

    async def answer(request: Request) -> Response:
        try:
            async with _form(request) as form:
                return JSONResponse(await function(form), headers=_HEADERS)
        except UserError as error:
            return _refusal(error)

    return answer


def _refusal(error: UserError) -> Response:
    return JSONResponse({"problem": str(error)}, status_code=400, headers=_HEADERS)


@contextlib.asynccontextmanager
async def _form(request: Request) -> AsyncIterator[FormData]:
    """Reads a form, and closes its files."""
    if int(request.headers.get("content-length", 0)) > _LARGEST:
        raise UserError(f"the files are larger than {_LARGEST >> 20} MiB: make the photograph smaller")
    async with request.form(max_part_size=2**16) as form:
        yield form


async def _file(form: FormData, field: str) -> tuple[str, bytes]:
    """Name and content of a file in a form."""
    file = form.get(field)
    if not isinstance(file, UploadFile):
        raise UserError(f"there is no {field}: choose a file")
    return file.filename or field, await file.read()


async def _order(form: FormData) -> Order:
    name, photograph = await _file(form, "photograph")
    mask = (await _file(form, "mask"))[1] if "mask" in form else None
    seed = str(form.get("seed", "0"))
    if not seed.isascii() or not seed.isdigit():
        raise UserError(f"`seed` is {seed!r}; it takes a whole number from 0")
    words = {field: str(form.get(field, "")) or None for field in ("preset", "crop", "elsewhere")}
    return Order(name, photograph, mask, str(form.get("prior", "")), seed=int(seed), **words)


def _encoded(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"
