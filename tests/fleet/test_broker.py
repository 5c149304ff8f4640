"""Reports through a real Mosquitto, with the server killed in between; and what is said where there is no broker."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgegen.errors import ConfigError
from edgegen.fleet.telemetry.broker import Address, parse_address
from edgegen.records.telemetry import MQTT_ACKS, MQTT_REPORTS, Ack
from tests.fleet.site import Desk, serving
from tests.simulators.reporting_device import batch_of, generation, report

mqtt = pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")
STREAM = "over-mqtt"
PATIENCE_S = 60.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _mosquitto(folder: Path, port: int) -> Iterator[None]:
    """The broker with a login for each device and the rules of `broker`'s description."""
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    maker = shutil.which("mosquitto_passwd")
    if program is None or maker is None:
        pytest.skip("Mosquitto is not installed (Debian: mosquitto)")
    folder.mkdir(exist_ok=True)
    passwords = folder / "passwords"
    passwords.touch(mode=0o600)
    for user in ("edgegen-fleet", "pi-1", "pi-2"):
        subprocess.run([maker, "-b", str(passwords), user, f"word of {user}"], check=True, capture_output=True)
    rules = folder / "rules"
    rules.write_text(
        "pattern write edgegen/%u/reports\npattern read edgegen/%u/acks\n"
        "user edgegen-fleet\ntopic read edgegen/+/reports\ntopic write edgegen/+/acks\n"
    )
    rules.chmod(0o600)
    config = folder / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\nacl_file {rules}\n"
        "persistence false\n" + ("user root\n" if os.getuid() == 0 else "")
    )
    process = subprocess.Popen([program, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


class _Device:
    """Publishes batches and waits for the server's word, sending again until it comes."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.acks: queue.Queue[Ack] = queue.Queue()
        self.client: Any = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.username_pw_set(name, f"word of {name}")
        self.client.on_connect = lambda client, *_: client.subscribe(MQTT_ACKS.format(device=name), qos=1)
        self.client.on_message = lambda _, __, message: self.acks.put(msgspec.json.decode(message.payload, type=Ack))
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def publish(self, body: bytes, topic: str = "") -> None:
        self.client.publish(topic or MQTT_REPORTS.format(device=self.name), body, qos=1)

    def send(self, body: bytes) -> Ack:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            self.publish(body)
            with contextlib.suppress(queue.Empty):
                return self.acks.get(timeout=1.0)
        raise AssertionError("no word of the server")

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def _batch(first: int, count: int = 20) -> bytes:
    some = [report(seq, generation(seq), stream=STREAM) for seq in range(first, first + count)]
    return batch_of(some, stream=STREAM)


@pytest.mark.slow
def test_reports_survive_kills_of_the_server_and_the_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, port = tmp_path / "site", _free_port()
    (site / "repository").mkdir(parents=True)
    monkeypatch.setenv("EDGEGEN_MQTT_PASSWORD", "word of edgegen-fleet")
    desk = Desk(str(site / "fleet.db"), time.time())
    for name, revoked in (("pi-1", 0), ("pi-2", 1)):
        desk.run(
            lambda tx, name=name, revoked=revoked: tx.run(
                "INSERT INTO devices (device, grp, token_digest, attributes, running, enrolled_s, revoked) "
                "VALUES (?, 'kitchens', 'x', '{}', '', 0, ?)",
                *(name, revoked),
            )
        )
    words = ("--mqtt", f"mqtt://edgegen-fleet@127.0.0.1:{port}")
    with _mosquitto(tmp_path / "broker", port):
        device, revoked = _Device("pi-1", port), _Device("pi-2", port)
        for first in range(1, 100, 20):
            with serving(site, *words) as (_, server):
                ack = device.send(_batch(first))
                assert ack.stream == STREAM and ack.stored + ack.known == 20
                device.publish(_batch(first + 20))  # killed about when this comes
                time.sleep(0.003 * first / 20)
                server.kill()
        with serving(site, *words):
            ack = device.send(_batch(1, 120))
            assert ack.stream == STREAM and ack.stored + ack.known <= 120
            device.publish(_batch(9000, 1), MQTT_REPORTS.format(device="pi-2"))  # the broker's rules
            revoked.publish(_batch(9001, 1))
            device.publish(b"nonsense")
            while ack.stream:  # what was sent again is answered again
                ack = device.acks.get(timeout=PATIENCE_S)
            assert (ack.stored, ack.known, [one.line for one in ack.refused]) == (0, 0, [0])
            assert revoked.acks.empty()
    with _mosquitto(tmp_path / "broker", port), serving(site, *words):  # both come back
        ack = device.send(_batch(121))
        assert ack.stored + ack.known == 20
        device.close()
        revoked.close()
    rows = desk.run(lambda tx: tx.rows("SELECT device, seq FROM generations ORDER BY seq"))
    assert [(row["device"], row["seq"]) for row in rows] == [("pi-1", seq) for seq in range(1, 141)]
    (total,) = desk.run(lambda tx: tx.rows("SELECT SUM(value) AS n FROM totals WHERE name = 'generations'"))
    assert total["n"] == 140
    desk.database.close()


@pytest.mark.slow
def test_a_broker_that_does_not_answer_keeps_nobody_waiting(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    Desk(str(tmp_path / "fleet.db")).database.close()
    with serving(tmp_path, "--mqtt", f"mqtt://127.0.0.1:{_free_port()}") as (_, server):
        assert server.poll() is None
        assert server.stderr is not None and "trying again" in server.stderr.readline()


def test_addresses() -> None:
    assert parse_address("mqtt://host") == Address("host", 1883, False, "", "")
    assert parse_address("mqtts://a%40b:c@[::1]:99") == Address("::1", 99, True, "a@b", "c")
    for wrong in ("host", "http://host", "mqtt://", "mqtt://host:99999", "mqtt://host/topic", "mqtt://[::1"):
        with pytest.raises(ConfigError, match="--mqtt"):
            parse_address(wrong)
