"""Other users of the machine, and of the network, get nothing of a study's workers."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from planescope.files.errors import UsageError
from planescope.study.work import cluster
from planescope.study.work.make import make_study

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with cluster.local_client(1) as client:
        yield client


def listening() -> list[Any]:
    me = psutil.Process()
    return [
        connection.laddr
        for process in (me, *me.children(recursive=True))
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]


def test_its_own_client_works(client: Any) -> None:
    assert client.submit(sum, [1, 2]).result(timeout=60) == 3


@pytest.mark.parametrize("who", ["somebody else", "plain"])
def test_others_are_refused(client: Any, who: str) -> None:
    address = client.scheduler.address
    assert address.startswith("tls://127.0.0.1:")
    security = distributed.Security.temporary() if who == "somebody else" else None
    if who == "plain":
        address = address.replace("tls://", "tcp://")
    with pytest.raises((OSError, TypeError, RuntimeError, ValueError)):
        distributed.Client(address, timeout=3, security=security)


def test_who_shows_no_certificate_is_told_nothing(client: Any) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    port = int(client.scheduler.address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        told = b""
        refusal = contextlib.suppress(ssl.SSLError, ConnectionError)
        with refusal, context.wrap_socket(plain) as secure:
            told = secure.recv(1)  # with TLS 1.3 the refusal comes only now
        assert told == b""


def test_workers_and_nannies_refuse_others_too(client: Any) -> None:
    addresses = [*client.scheduler_info(n_workers=-1)["workers"]]
    assert addresses
    for address in addresses:
        assert address.startswith("tls://127.0.0.1:")
        with (
            pytest.raises(UsageError, match="no scheduler answered"),
            cluster.client_of(address.replace("tls", "tcp"), patience=2),
        ):
            pass


def test_it_listens_to_this_machine_alone_and_http_tells_nothing(client: Any) -> None:
    found = listening()
    assert found
    pages = ("/info/main/workers.html", "/status", "/json/identity.json", "/health")
    first = {address: answer for address in found if (answer := ask(address, "")) is not None}
    others = [ask(address, page) for address in first for page in pages]
    answers = [*first.values(), *(answer for answer in others if answer is not None)]
    assert answers  # HTTP servers are there
    assert {code for code, _ in answers} == {404}
    assert not any(b"tls://" in text for _, text in answers)


def ask(address: Any, page: str) -> tuple[int, bytes] | None:
    """Status and text of a page; None where no HTTP is spoken."""
    connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=2)
    try:
        connection.request("GET", page)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("ca", None, None), "--tls-cert is missing"),
        (("ca", "cert", "no"), r"--tls-key no: is no file"),
    ],
)
def test_certificates_are_looked_at_first(
    given: tuple[str | None, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ca", "cert"):
        Path(name).touch()
    with pytest.raises(UsageError, match=sentence):
        cluster.security_of(*given)


def test_a_scheduler_with_certificates_takes_those_who_show_them(tmp_path: Path) -> None:
    ours = distributed.Security.temporary()
    for name in ("tls_ca_file", "tls_client_cert", "tls_client_key"):
        (tmp_path / name).write_text(getattr(ours, name))
    given = cluster.security_of(
        *(str(tmp_path / n) for n in ("tls_ca_file", "tls_client_cert", "tls_client_key"))
    )
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, security=ours,
            dashboard_address="127.0.0.1:0", host="127.0.0.1",
        ) as held,
        cluster.client_of(held.scheduler_address, security=given) as client,
    ):  # fmt: skip
        assert client.submit(sum, [2, 3]).result(timeout=60) == 5


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    with pytest.raises(UsageError, match="leave out --dashboard"):
        make_study(file, tmp_path, scheduler="tls://a:1", dashboard=print)
    with pytest.raises(UsageError, match="give --scheduler too"):
        make_study(file, tmp_path, security=distributed.Security())
