"""Batches over an MQTT 5 broker, fed from the spool.

paho's own queue is memory and is lost with the power, and QoS 1 says only that the broker has a message. So one batch
at a time is published, and it leaves the spool when the server says on another topic that it is committed. Whenever
that word does not come, the connection is given up and the batch is sent again later. An `Ack` without stream whose one
refusal has line 0 says that the batch as a whole cannot be read.
"""

from __future__ import annotations

import contextlib
import queue
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from edgegen.agent.telemetry.sender import Later, Reply, Taken, Unwanted, settled
from edgegen.agent.telemetry.settings import Mqtt
from edgegen.agent.telemetry.spool import Parcel
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.records.telemetry import MQTT_ACKS, MQTT_REPORTS, Ack

_CONNECT_S = 20.0
_LOOK_S = 0.05
_NO_READER = 0x10
_TOO_LARGE, _MALFORMED = 0x95, 0x99


class MqttPost:
    """The way over one broker. Call it as a `Post`; close it."""

    def __init__(self, config: Mqtt, device: str) -> None:
        """Prepare; nothing is connected yet.

        Raises:
            UnsupportedError: paho is not installed.
            ConfigError: a name that is no topic, or files that cannot be read.
        """
        require_paho()
        if any(sign in device for sign in "+#/\0") or not device:
            raise ConfigError(f"device: {device!r} cannot be part of a topic", hint="Name it without + # /.")
        self._config, self._device = config, device
        self._password = _secret(config.password_file)
        self._context = _tls(config) if config.tls else None
        self._client: Any = None
        self._broken = threading.Event()
        self._why = ""
        self._most_bytes: int | None = None
        self._acks: queue.Queue[bytes] = queue.Queue()
        self._confirmed: queue.Queue[int] = queue.Queue()

    def __call__(self, body: bytes, parcel: Parcel) -> Reply:
        """Publish a batch and wait until the server has it."""
        if self._client is None or self._broken.is_set():
            self.close()
            why = self._connect()
            if why:
                self.close()
                return Later(why)
        if self._most_bytes is not None and len(body) + 256 > self._most_bytes:
            return Unwanted(f"the broker takes {self._most_bytes:,} bytes")
        while not self._acks.empty():  # of a batch that was given up
            self._acks.get_nowait()
        reply = self._publish(body, parcel)
        if not isinstance(reply, Taken):
            self.close()
        return reply

    def close(self) -> None:
        """Disconnect; what was not acknowledged is sent again another time."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                client.disconnect()
            client.loop_stop()

    def _publish(self, body: bytes, parcel: Parcel) -> Reply:
        import paho.mqtt.properties as paho_properties
        from paho.mqtt.packettypes import PacketTypes

        properties = paho_properties.Properties(PacketTypes.PUBLISH)
        properties.ContentType = "application/x-ndjson"
        try:
            self._client.publish(MQTT_REPORTS.format(device=self._device), body, qos=1, properties=properties)
        except (ValueError, RuntimeError) as error:
            return Unwanted(str(error)) if len(parcel.seqs) > 1 else Later(str(error))
        until = time.monotonic() + self._config.ack_s
        while time.monotonic() < until:
            if self._broken.is_set():
                return Later(f"the broker went away: {self._why}")
            with contextlib.suppress(queue.Empty):
                code = self._confirmed.get_nowait()
                if code in (_TOO_LARGE, _MALFORMED):
                    return Unwanted(f"the broker answers {code:#x}")
                if code == _NO_READER:
                    return Later("the broker has nobody who takes reports")
                if code >= 0x80:
                    return Later(f"the broker answers {code:#x}")
            with contextlib.suppress(queue.Empty, msgspec.MsgspecError):
                ack = msgspec.json.decode(self._acks.get(timeout=_LOOK_S), type=Ack)
                if settled(parcel, ack):
                    return Taken(ack)
                if not ack.stream and [one.line for one in ack.refused] == [0]:
                    return Unwanted(ack.refused[0].reason[:200])
        return Later(f"no word of the server for {self._config.ack_s:g} s")

    def _connect(self) -> str:
        """Connect and listen for acknowledgements; why that failed, empty if it did not."""
        import paho.mqtt.client as paho

        self._broken, self._why, self._most_bytes = threading.Event(), "", None
        self._acks, self._confirmed = queue.Queue(), queue.Queue()
        broken, acks, confirmed, ready = self._broken, self._acks, self._confirmed, threading.Event()
        client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            client_id=f"edgegen-{self._device}",
            protocol=paho.MQTTv5,
            reconnect_on_failure=False,
        )
        client.max_inflight_messages_set(1)
        client.max_queued_messages_set(1)
        if self._config.username:
            client.username_pw_set(self._config.username, self._password)
        if self._context is not None:
            client.tls_set_context(self._context)

        def fail(words: object) -> None:
            self._why = self._why or str(words)
            broken.set()
            ready.set()

        def connected(of: Any, _: object, __: object, code: Any, properties: Any) -> None:
            if code.is_failure:
                fail(code)
                return
            self._most_bytes = getattr(properties, "MaximumPacketSize", None)
            of.subscribe(MQTT_ACKS.format(device=self._device), qos=1)

        def subscribed(_: object, __: object, ___: object, codes: Any, ____: object) -> None:
            if any(code.is_failure for code in codes):
                fail(f"the broker lets nobody read {MQTT_ACKS.format(device=self._device)}: {codes[0]}")
            ready.set()

        client.on_connect = connected
        client.on_subscribe = subscribed
        client.on_disconnect = lambda *given: fail(given[3])
        client.on_message = lambda _, __, message: acks.put(message.payload)
        client.on_publish = lambda _, __, ___, code, ____: confirmed.put(code.value)
        client.connect_timeout = _CONNECT_S
        port = self._config.port or (8883 if self._config.tls else 1883)
        place = f"{self._config.host}:{port}"
        try:
            client.connect(self._config.host, port, keepalive=self._config.keepalive_s, clean_start=True)
        except (OSError, ValueError) as error:
            return f"{place}: {getattr(error, 'strerror', None) or error}"
        self._client = client
        client.loop_start()
        if not ready.wait(_CONNECT_S):
            return f"{place}: the broker does not answer"
        return f"{place}: {self._why}" if broken.is_set() else ""


def require_paho() -> None:
    """Refuse early where the client is not installed.

    Raises:
        UnsupportedError: the extra `mqtt` is missing.
    """
    try:
        import paho.mqtt.client  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(
            "telemetry.transport mqtt needs paho-mqtt", hint='Install it: pip install "edgegen[mqtt]".'
        ) from error


def _tls(config: Mqtt) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=config.ca_file or None)
        if config.certificate_file:
            context.load_cert_chain(config.certificate_file, config.key_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"telemetry.mqtt: its certificates cannot be read: {error}") from error
    return context


def _secret(path: str) -> str | None:
    if not path:
        return None
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="It holds the broker's password.") from error
