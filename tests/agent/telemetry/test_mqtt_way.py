"""Reports over a real mosquitto, with a server at its other end that commits and acknowledges."""

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgegen.agent.telemetry.mqtt import MqttPost
from edgegen.agent.telemetry.sender import Later, Sender
from edgegen.agent.telemetry.settings import Mqtt
from edgegen.agent.telemetry.spool import Entry, Spool, stamp
from edgegen.errors import ConfigError
from edgegen.records.telemetry import MQTT_ACKS, MQTT_REPORTS, Ack, Feedback, Lane, Refused
from tests.agent.telemetry.ingest import Store

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/sbin")
paho = pytest.importorskip("paho.mqtt.client", reason="the extra mqtt is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed (Debian's package mosquitto)"),
]


class Broker:
    """mosquitto, with a user and a password."""

    def __init__(self, folder: Path, *lines: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self._config = folder / "mosquitto.conf"
        passwords = folder / "passwords"
        passwords.touch(0o600)
        tool = shutil.which("mosquitto_passwd", path="/usr/bin:/usr/local/bin:/opt/homebrew/bin")
        assert tool is not None
        subprocess.run([tool, "-b", str(passwords), "edge", "secret"], check=True, capture_output=True)
        words = [f"listener {self.port} 127.0.0.1", f"password_file {passwords}", "persistence false", *lines]
        self._config.write_text("\n".join([*words, f"user {_me()}"]) + "\n")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Run, until it takes connections."""
        assert MOSQUITTO is not None
        self._process = subprocess.Popen(
            [MOSQUITTO, "-c", str(self._config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
                return
            except OSError:
                assert time.monotonic() < until
                time.sleep(0.05)

    def stop(self) -> None:
        """Kill it."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()


def _me() -> str:
    import getpass

    return getpass.getuser()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    running = Broker(tmp_path)
    yield running
    running.stop()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(tmp_path / "spool.db", quota_bytes=8 << 20) as opened:
        yield opened


@contextmanager
def server(
    broker: Broker,
    store: Store,
    *,
    silent: Callable[[], bool] = lambda: False,
    unreadable: Callable[[bytes], bool] = lambda _: False,
    **tls: Any,
) -> Iterator[list[int]]:
    """The fleet's end: commits what comes, then says so; it comes back when the broker does. Sizes of its batches."""
    sizes, ready = list[int](), threading.Event()
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.username_pw_set("edge", "secret")
    client.reconnect_delay_set(0.05, 0.2)
    if tls:
        client.tls_set(**tls)

    def take(of: Any, _: object, message: Any) -> None:
        sizes.append(len(message.payload))
        bad = unreadable(message.payload)
        ack = Ack("", 0, 0, (Refused(0, "cannot be read"),)) if bad else store.take(message.payload)
        if not silent():
            device = message.topic.split("/")[1]
            of.publish(MQTT_ACKS.format(device=device), msgspec.json.encode(ack), qos=1)

    client.on_connect = lambda of, *_: of.subscribe(MQTT_REPORTS.format(device="+"), qos=1)
    client.on_subscribe = lambda *_: ready.set()
    client.on_message = take
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    assert ready.wait(30)
    try:
        yield sizes
    finally:
        client.disconnect()
        client.loop_stop()


def way(broker: Broker, folder: Path, **more: Any) -> MqttPost:
    (folder / "password").write_text("secret\n")
    settings: dict[str, Any] = {"tls": False, "ack_s": 20.0, "username": "edge"} | more
    config = Mqtt(host="127.0.0.1", port=broker.port, password_file=str(folder / "password"), **settings)
    return MqttPost(config, "kitchen-1")


def add(spool: Spool, count: int) -> None:
    spool.add([Entry(Lane.NUMBERS, Feedback(str(number), 1), stamp()) for number in range(count)])


def run(spool: Spool, post: MqttPost, timeout_s: float = 60) -> None:
    """Send until nothing is left."""
    sending = Sender(spool, post, idle_s=-1, tell=lambda _: None)
    until = time.monotonic() + timeout_s
    while (wait := sending.step()) != -1:
        assert time.monotonic() < until
        time.sleep(min(wait, 0.2))


def test_batches_leave_the_spool_when_the_server_has_them(tmp_path: Path, broker: Broker, spool: Spool) -> None:
    store, post = Store(tmp_path / "server.db"), way(broker, tmp_path)
    add(spool, 5000)
    with server(broker, store) as sizes:
        run(spool, post)
        add(spool, 1)
        run(spool, post)
    assert [report.seq for report in store.reports()] == list(range(1, 5002))
    assert len(sizes) >= 4
    post.close()
    store.close()


def test_a_broker_that_restarts_and_a_server_that_forgets_to_answer(
    tmp_path: Path, broker: Broker, spool: Spool
) -> None:
    store, post = Store(tmp_path / "server.db"), way(broker, tmp_path, ack_s=2.0)
    add(spool, 100)
    quiet = [True]
    with server(broker, store, silent=lambda: quiet[0]):
        sending = Sender(spool, post, idle_s=-1, tell=lambda _: None)
        assert sending.step() > 0
        assert spool.depth().lanes[0].reports == 100  # the broker has it, the server has it, but nobody said so
        broker.stop()
        assert sending.step() > 0
        broker.start()
        quiet[0] = False
        add(spool, 100)
        run(spool, post)
    assert [report.seq for report in store.reports()] == list(range(1, 201))
    post.close()
    store.close()


def test_without_a_server_or_with_a_wrong_password_everything_stays(
    tmp_path: Path, broker: Broker, spool: Spool
) -> None:
    add(spool, 3)
    parcel = spool.take(1 << 20)
    assert parcel is not None
    post = way(broker, tmp_path)
    reply = post(parcel.body(stamp()), parcel)
    assert isinstance(reply, Later) and "nobody" in reply.reason
    post.close()
    stranger = way(broker, tmp_path, username="other")
    reply = stranger(parcel.body(stamp()), parcel)
    assert isinstance(reply, Later) and "uthori" in reply.reason
    broker.stop()
    reply = post(parcel.body(stamp()), parcel)
    assert isinstance(reply, Later) and "refused" in reply.reason
    assert spool.depth().lanes[0].reports == 3
    broker.start()


def test_a_batch_that_the_server_cannot_read_is_halved(tmp_path: Path, broker: Broker, spool: Spool) -> None:
    store, post = Store(tmp_path / "server.db"), way(broker, tmp_path)
    add(spool, 40)
    with server(broker, store, unreadable=lambda body: b'"generation":"17"' in body):
        run(spool, post)
    assert sorted(report.seq for report in store.reports())[:39] == [n for n in range(1, 41) if n != 18]
    assert [(gone.why, gone.count) for gone in spool.depth().gone] == [("refused", 1)]
    post.close()
    store.close()


def test_a_broker_that_takes_only_small_messages(tmp_path: Path, spool: Spool) -> None:
    broker = Broker(tmp_path, "max_packet_size 20000")
    store, post = Store(tmp_path / "server.db"), way(broker, tmp_path)
    try:
        add(spool, 500)
        with server(broker, store) as sizes:
            run(spool, post)
        assert len(store.reports()) == 500 and max(sizes) < 20_000
    finally:
        post.close()
        broker.stop()
        store.close()


def test_over_tls(tmp_path: Path, spool: Spool) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=broker"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    broker = Broker(tmp_path, f"certfile {certificate}", f"keyfile {key}")
    store = Store(tmp_path / "server.db")
    try:
        add(spool, 10)
        parcel = spool.take(1 << 20)
        assert parcel is not None
        untrusting = way(broker, tmp_path, tls=True)
        reply = untrusting(parcel.body(stamp()), parcel)
        assert isinstance(reply, Later) and "certificate" in reply.reason.lower()
        post = way(broker, tmp_path, tls=True, ca_file=str(certificate))
        with server(broker, store, ca_certs=str(certificate)):
            run(spool, post)
        assert len(store.reports()) == 10
        post.close()
    finally:
        broker.stop()
        store.close()


def test_a_name_that_is_no_topic_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="topic"):
        MqttPost(Mqtt(host="x", tls=False), "a/b")
    with pytest.raises(ConfigError, match="no/such"):
        MqttPost(Mqtt(host="x", tls=False, password_file="/no/such"), "a")
    with pytest.raises(ConfigError, match="certificates"):
        MqttPost(Mqtt(host="x", ca_file="/no/such"), "a")
