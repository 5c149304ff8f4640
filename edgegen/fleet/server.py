"""Run the server in this process until it is told to stop."""

from __future__ import annotations

import errno
import ipaddress
import socket
import ssl
from collections.abc import Callable

from edgegen.common.urls import require_url
from edgegen.errors import ConfigError, NetworkError
from edgegen.fleet.database import Database
from edgegen.fleet.site import Site

_LONGEST_POLL_S = 86400.0


def serve(
    site: Site,
    *,
    host: str = "127.0.0.1",
    port: int = 8420,
    certificate: str | None = None,
    key: str | None = None,
    behind_proxy: bool = False,
    public_url: str | None = None,
    poll_s: float = 60.0,
    tick_s: float = 1.0,
    mqtt: str | None = None,
    otlp: str | None = None,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve a site's repository, its devices and its operators.

    Args:
        port: 0 takes a free one.
        certificate, key: PEM files; both or none.
        behind_proxy: something in front of this ends TLS.
        mqtt: URL of a broker that brings devices' reports, too (see `telemetry.broker`).
        otlp: URL of an OpenTelemetry collector that reports are passed on to (see `telemetry.otlp`).
        ready: called with the URL as soon as connections are taken.

    Raises:
        ConfigError: tokens would cross a network in clear text, one of certificate and key is missing, or an argument
            is none.
        NetworkError: the address is taken.
        UnsupportedError: what MQTT or OpenTelemetry needs is not installed.
    """
    if (certificate is None) != (key is None):
        raise ConfigError("TLS needs both a certificate and a key", hint="Name both, or neither.")
    if not (certificate or behind_proxy or _is_local(host)):
        raise ConfigError(
            f"{host}: tokens would cross the network in clear text",
            hint="Give --tls-cert and --tls-key, or --behind-proxy where something in front ends TLS.",
        )
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port} is no port", hint="0 takes a free one; others go to 65535.")
    if not 0 < poll_s <= _LONGEST_POLL_S:  # NaN is not
        raise ConfigError(f"--poll {poll_s:g}: seconds above 0, up to a day")
    if public_url is not None:
        require_url(public_url, what="--public-url")
    if certificate and key:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
        except OSError as error:
            reason = getattr(error, "reason", None) or error.strerror or error
            raise ConfigError(f"{certificate}, {key}: no certificate with its key: {reason}") from error
    import uvicorn

    from edgegen.fleet.app import make_app

    Database(site.store).close()  # what is wrong with it is said here, in one line
    app = make_app(site, poll_s=poll_s, tick_s=tick_s, public_url=public_url, mqtt=mqtt, otlp=otlp)
    listener = _listen(host, port)
    config = uvicorn.Config(
        app,
        log_level="warning",
        ssl_certfile=certificate,
        ssl_keyfile=key,
        proxy_headers=behind_proxy,
        timeout_keep_alive=75,
        server_header=False,
        lifespan="on",
    )
    server = uvicorn.Server(config)
    name = f"[{host}]" if ":" in host else host
    ready(f"{'https' if certificate else 'http'}://{name}:{listener.getsockname()[1]}")
    server.run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket: connections that come before the first is accepted wait, and are not refused."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise NetworkError(
            f"{host}:{port}: {error.strerror or error}",
            hint="Choose another with --host."
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
            else "Choose another with --port.",
        ) from error
    return listener


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
