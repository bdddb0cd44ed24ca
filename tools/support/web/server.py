"""Serving a page: on this machine alone unless told otherwise, and without a word to any other."""

import contextlib
import errno
import os
import signal
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from support import cli

if TYPE_CHECKING:
    import gradio
    import uvicorn

OWN_ONLY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
"""What browsers may load for a page: nothing from elsewhere."""


def need_gradio() -> None:
    """Import Gradio, which is to tell its makers nothing.

    Raises:
        UserError: it is not installed.
    """
    os.environ.update(GRADIO_ANALYTICS_ENABLED='False', HF_HUB_DISABLE_TELEMETRY='1')
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        raise cli.UserError(
            f'{error.name} is not installed, and the page is made with Gradio: '
            'pip install -r requirements-web.txt, or this project with its extra [web]'
        ) from error


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any that is free.

    Raises:
        UserError: it cannot be had; says which of the two is why.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except socket.gaierror as error:
        raise cli.UserError(f'--host {host}: {error.strerror}') from error
    except OSError as error:
        why = {
            errno.EADDRINUSE: f'--port {port}: taken on {host}; name another, or 0 for any',
            errno.EACCES: f'--port {port}: only for root; name one above 1023, or 0 for any',
            errno.EADDRNOTAVAIL: f'--host {host}: no address of this machine',
        }
        text = why.get(error.errno, f'--host {host} --port {port}: {error.strerror}')
        raise cli.UserError(text) from error


@contextlib.contextmanager
def upload_folder() -> Iterator[Path]:
    """Where Gradio puts what comes and goes; however the command ends, it is removed."""

    def stop(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with tempfile.TemporaryDirectory(prefix='rmt-web-', ignore_cleanup_errors=True) as folder:
            os.environ['GRADIO_TEMP_DIR'] = os.path.realpath(folder)
            yield Path(os.path.realpath(folder))
    finally:
        os.environ.pop('GRADIO_TEMP_DIR', None)
        signal.signal(signal.SIGTERM, before)


def server(page: 'gradio.Blocks', most_bytes: int) -> 'uvicorn.Server':
    """What serves a page: ``run(sockets=[...])`` does until a signal comes.

    Args:
        most_bytes: of a file that is uploaded; more is refused while it comes.
    """
    import gradio
    import uvicorn
    from fastapi import FastAPI

    from support.web.page import STYLE

    no_documents = dict(docs_url=None, redoc_url=None, openapi_url=None)
    app = gradio.mount_gradio_app(
        FastAPI(**no_documents),
        page,
        path='/',
        max_file_size=most_bytes,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        css=STYLE,
        app_kwargs=no_documents,
    )
    page.has_launched = True  # else Gradio takes any path of this machine for an upload
    (mounted,) = (route.app for route in app.routes if route.path == '')

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            mounted.stop_event.set()  # else every open page would be waited for
            await super().shutdown(sockets)

    return Server(uvicorn.Config(_own_only(app), log_level='error', timeout_graceful_shutdown=2))


def _own_only(app: Callable[..., Awaitable]) -> Callable[..., Awaitable]:
    """An ASGI application whose answers tell the browser to ask nobody else."""

    async def answer(scope: dict, receive: Callable, send: Callable[..., Awaitable]) -> None:
        async def send_with_header(message: dict) -> None:
            if message['type'] == 'http.response.start':
                header = (b'content-security-policy', OWN_ONLY)
                message = {**message, 'headers': [*message['headers'], header]}
            await send(message)

        await app(scope, receive, send_with_header)

    return answer
