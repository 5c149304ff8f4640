"""The same ingest over MQTT: batches on `edgegen/{device}/reports`, answers on `edgegen/{device}/acks`.

QoS 1 ends at the broker, which is no store: a device forgets a report only when the `Ack` came, which is published
after the commit, and sends again otherwise. So nothing is asked of the broker's memory: this server subscribes anew at
each start, and what came while it was down comes again.

A topic's device is believed: who may publish there is the broker's affair. Give each device a login of its name and
rules like these (Mosquitto's `acl_file`), and the server one that may do the other half:

    pattern write edgegen/%u/reports
    pattern read edgegen/%u/acks
    user edgegen-fleet
    topic read edgegen/+/reports
    topic write edgegen/+/acks

A device that the fleet does not know, or has revoked, gets no answer. A batch that cannot be read is answered with an
`Ack` without stream whose one refusal has line 0. Several servers of one store may subscribe: what they all store is
there once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import msgspec

from edgegen.errors import ConfigError, EdgegenError, UnsupportedError
from edgegen.fleet.credentials import NAME
from edgegen.fleet.request_error import RequestError
from edgegen.fleet.telemetry.batches import MOST_PACKED_BYTES
from edgegen.fleet.telemetry.intake import Intake
from edgegen.fleet.transaction import Row, Transaction
from edgegen.records.telemetry import MQTT_ACKS, MQTT_REPORTS, Ack, Refused

PASSWORD_VARIABLE = "EDGEGEN_MQTT_PASSWORD"
_PORTS = {"mqtt": 1883, "mqtts": 8883}
_KEEPALIVE_S = 30
_LONGEST_PAUSE_S = 30
_log = logging.getLogger("edgegen.fleet")


class Address(NamedTuple):
    """A broker."""

    host: str
    port: int
    tls: bool
    user: str
    password: str


def parse_address(url: str) -> Address:
    """`mqtt://[user[:password]@]host[:port]`, or `mqtts://` with TLS.

    Raises:
        ConfigError: it is none.
        UnsupportedError: paho-mqtt is not installed.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ConfigError(f"--mqtt: {error}", hint="Write it like mqtt://host:1883.") from error
    if parts.scheme not in _PORTS or not host or parts.path.strip("/") or parts.query:
        raise ConfigError("--mqtt: not the address of a broker", hint="Write it like mqtt://host:1883.")
    try:
        import paho.mqtt.client  # noqa: F401
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            "--mqtt needs paho-mqtt, which is not installed", hint="pip install 'edgegen[mqtt]'"
        ) from error
    password = unquote(parts.password or "") or os.environ.get(PASSWORD_VARIABLE, "")
    return Address(host, port or _PORTS[parts.scheme], parts.scheme == "mqtts", unquote(parts.username or ""), password)


class Broker:
    """One server's connection to a broker, which it opens again for as long as it runs."""

    def __init__(self, address: Address, intake: Intake) -> None:
        from paho.mqtt.client import Client, MQTTv5
        from paho.mqtt.enums import CallbackAPIVersion

        self._address, self._intake = address, intake
        self._loop: asyncio.AbstractEventLoop
        self._work: set[asyncio.Task[None]] = set()
        self._told = False
        client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        if address.user:
            client.username_pw_set(address.user, address.password or None)
        if address.tls:
            client.tls_set_context(ssl.create_default_context())
        client.reconnect_delay_set(1, _LONGEST_PAUSE_S)
        client.on_connect, client.on_connect_fail = self._connected, self._not_connected
        client.on_disconnect, client.on_message = self._disconnected, self._arrived
        self._client: Any = client

    def start(self) -> None:
        """Connect in a thread of its own; a broker that does not answer is tried again."""
        self._loop = asyncio.get_running_loop()
        self._client.connect_async(self._address.host, self._address.port, keepalive=_KEEPALIVE_S)
        self._client.loop_start()

    async def stop(self) -> None:
        """Disconnect; what was being stored is, and is sent again by its device."""
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)
        await asyncio.gather(*self._work, return_exceptions=True)

    def _connected(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._say(f"refuses: {reason}")
            return
        self._told = False
        client.subscribe(MQTT_REPORTS.format(device="+"), qos=1)
        _log.info("subscribed at %s:%d", self._address.host, self._address.port)

    def _not_connected(self, client: Any, userdata: Any) -> None:
        self._say("does not answer")

    def _disconnected(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._say(f"lost: {reason}")

    def _say(self, what: str) -> None:
        """Once until it is well again."""
        if not self._told:
            _log.error("the broker %s:%d %s; trying again", self._address.host, self._address.port, what)
        self._told = True

    def _arrived(self, client: Any, userdata: Any, message: Any) -> None:
        """In the client's thread: hand over to the event loop."""
        device = str(message.topic).split("/")[1]
        if NAME.fullmatch(device):
            self._loop.call_soon_threadsafe(self._begin, device, bytes(message.payload))

    def _begin(self, device: str, body: bytes) -> None:
        task = self._loop.create_task(self._take(device, body))
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _take(self, device: str, body: bytes) -> None:
        def admission(tx: Transaction) -> Row:
            rows = tx.rows("SELECT * FROM devices WHERE device = ? AND revoked = 0", device)
            if not rows:
                raise RequestError(401, "no such device")
            return rows[0]

        try:
            with self._intake.place():
                if len(body) > MOST_PACKED_BYTES:
                    raise RequestError(413, f"a batch has at most {MOST_PACKED_BYTES} bytes")
                ack = await self._intake.take(body, admission)
        except RequestError as error:
            if error.status in (401, 503):
                _log.warning("mqtt: a batch of %s is not taken: %s", device, error)
                return
            ack = Ack(stream="", stored=0, known=0, refused=(Refused(0, str(error)),))
        except EdgegenError as error:
            _log.error("%s", error)
            return
        except Exception:
            _log.exception("a batch could not be stored")
            return
        self._client.publish(MQTT_ACKS.format(device=device), msgspec.json.encode(ack), qos=1)
