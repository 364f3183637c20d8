"""What `memvm verifier`, `broker` and `keeper` have in common as HTTP services: their options, and how they run."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from memvm.cli.parser import add_json
from memvm.errors import UsageError

if TYPE_CHECKING:
    from memvm.attest.http import Application


def add_serving(parser: argparse.ArgumentParser, port: int) -> None:
    """The options that say where a service listens; `port` is the usual one."""
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at; 127.0.0.1 if not given")
    parser.add_argument(
        "--port", type=_port, default=port, metavar="N", help=f"{port} if not given; 0 takes a free one"
    )
    parser.add_argument("--tls-certificate", metavar="FILE", default="", help="certificate chain, for TLS")
    parser.add_argument("--tls-key", metavar="FILE", default="", help="its key")
    add_json(parser)


def url_of(arguments: argparse.Namespace, port: int) -> str:
    """Where the service is, if it listens at that port."""
    scheme = "https" if arguments.tls_certificate else "http"
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    return f"{scheme}://{host}:{port}"


def _port(text: str) -> int:
    if not text.isdecimal() or int(text[:6]) >= 1 << 16:
        raise UsageError(f"not a port: {text!r}", hint="a number from 0 to 65535")
    return int(text)


def serve(arguments: argparse.Namespace, application: Application) -> None:
    """Serve until SIGINT or SIGTERM, and print the URL once it listens. Raises UsageError."""
    import logging

    from memvm.attest.http import serve_application

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")

    def ready(port: int) -> None:
        url = url_of(arguments, port)
        print(json.dumps({"url": url}) if arguments.json else f"{application.name} at {url}", flush=True)

    certificate, key = arguments.tls_certificate, arguments.tls_key
    serve_application(application, arguments.host, arguments.port, certificate=certificate, key=key, ready=ready)
