"""An artifact reaches the admin API whole, and every way to fail says what to do."""

import io
import json
import socket
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from adapters.register import RegisterError, register, tar_stream


class Gateway(HTTPServer):
    """Takes one kind of request, keeps what came, and answers what it was told to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = 201
        self.answer = json.dumps({"number": 1}).encode()
        self.path = ""
        self.authorization = ""
        self.body = b""
        self.delay = threading.Event()
        self.delay.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gateway

    def do_POST(self) -> None:
        self.server.path = self.path
        self.server.authorization = self.headers["Authorization"]
        while size := int(self.rfile.readline(), 16):
            self.server.body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        self.server.delay.wait(10)
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.answer)))
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the tests look at what came."""


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.delay.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    (folder / "inner").mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"w" * 2_000_000)
    (folder / "inner" / "note.txt").write_bytes(b"x" * 512)
    (folder / ".hidden").write_text("not sent")
    return folder


def _register(gateway: Gateway, folder: Path, timeout: float = 10.0) -> object:
    return register(folder, "acme/desk", url=gateway.url + "/", key="secret", timeout=timeout)


def test_the_stream_is_a_tar_with_every_file_that_is_not_hidden(folder: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(b"".join(tar_stream(folder)))) as archive:
        files = {member.name: archive.extractfile(member) for member in archive}
        contents = {name: file.read() for name, file in files.items() if file}
    assert contents == {
        "adapter_config.json": b"{}", "adapter_model.safetensors": b"w" * 2_000_000, "inner/note.txt": b"x" * 512}


def test_equal_folders_give_equal_streams(folder: Path) -> None:
    before = b"".join(tar_stream(folder))
    (folder / "adapter_config.json").touch()
    assert b"".join(tar_stream(folder)) == before


def test_a_file_that_grows_while_it_is_read_stops_the_stream(folder: Path) -> None:
    stream = tar_stream(folder)
    next(stream)  # the first file's header is out, with its size
    (folder / "adapter_config.json").write_text("{ }")
    with pytest.raises(RegisterError, match=r"adapter_config\.json changed while it was read"):
        list(stream)


def test_the_version_that_the_gateway_made_is_returned(gateway: Gateway, folder: Path) -> None:
    assert _register(gateway, folder) == {"number": 1}
    assert gateway.path == "/admin/v1/tenants/acme/adapters/desk/versions"
    assert gateway.authorization == "Bearer secret"
    assert gateway.body == b"".join(tar_stream(folder))


def test_a_name_cannot_leave_its_place_in_the_path(gateway: Gateway, folder: Path) -> None:
    register(folder, "acme/../x", url=gateway.url, key="secret")
    assert gateway.path == "/admin/v1/tenants/acme/adapters/..%2Fx/versions"


def test_the_gateways_reason_is_passed_on(gateway: Gateway, folder: Path) -> None:
    gateway.status = 422
    gateway.answer = json.dumps({"error": {"message": "All B are zero.", "code": "artifact_refused"}}).encode()
    with pytest.raises(RegisterError, match=r"refused \(422 artifact_refused\): All B are zero\."):
        _register(gateway, folder)


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b'{"error": "Unauthorized"}'])
def test_an_answer_of_another_kind_of_server_is_named(gateway: Gateway, folder: Path, answer: bytes) -> None:
    gateway.status, gateway.answer = 404, answer
    with pytest.raises(RegisterError, match="answered 404 without saying why; is it a Switchyard gateway"):
        _register(gateway, folder)


def test_a_slow_gateway_is_given_up_on_with_advice(gateway: Gateway, folder: Path) -> None:
    gateway.delay.clear()
    with pytest.raises(RegisterError, match=r"did not answer within 0\.2 s; ask it for the adapter's versions"):
        _register(gateway, folder, timeout=0.2)


def test_a_gateway_that_is_not_there_is_named(folder: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # taken, and nobody listens
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(RegisterError, match="No gateway answers at http"):
            register(folder, "acme/desk", url=url, key="secret")


def test_an_address_that_is_none_is_refused(folder: Path) -> None:
    with pytest.raises(RegisterError, match="could not be asked"):
        register(folder, "acme/desk", url="gateway", key="secret")


@pytest.mark.parametrize("name", ["acme", "acme/", "/desk", ""])
def test_a_name_without_tenant_and_adapter_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(RegisterError, match="write tenant/adapter"):
        register(folder, name, url="http://127.0.0.1:1", key="secret")


def test_a_folder_without_weights_is_refused_before_anything_is_sent(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(RegisterError, match=r"lacks adapter_model\.safetensors"):
        register(folder, "acme/desk", url="http://127.0.0.1:1", key="secret")
