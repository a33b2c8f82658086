"""Staging folders: one's own are one's own, a dead process's are swept."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from gateway.clients.staging import Staging

STAGE_AND_HANG = """
import sys, time
from pathlib import Path
from gateway.clients.staging import Staging
staging = Staging(Path(sys.argv[1]))
(staging.new() / "half").write_bytes(b"x" * 1000)
print("ready", flush=True)
time.sleep(60)
"""


def other_process(parent: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", STAGE_AND_HANG, str(parent)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def test_a_dead_processs_work_is_swept_and_a_live_ones_is_not(tmp_path: Path) -> None:
    with other_process(tmp_path) as dying, other_process(tmp_path) as living:
        assert len(list(tmp_path.rglob("half"))) == 2
        os.kill(dying.pid, signal.SIGKILL)
        dying.wait()
        staging = Staging(tmp_path)
        assert len(list(tmp_path.rglob("half"))) == 1
        living.kill()
    staging.close()
    Staging(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def test_two_in_one_process_do_not_sweep_each_other(tmp_path: Path) -> None:
    first, second = Staging(tmp_path), Staging(tmp_path)
    folder = first.new()
    Staging(tmp_path).close()
    assert folder.is_dir()
    first.close()
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_buried_is_gone_and_so_is_what_was_not_there(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "staging")
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    staging.bury(folder)
    staging.bury(folder)
    assert not folder.exists()
    staging.close()
    assert list((tmp_path / "staging").iterdir()) == []


def test_a_lock_without_a_folder_is_swept(tmp_path: Path) -> None:
    (tmp_path / "x.lock").touch()
    Staging(tmp_path).close()
    assert list(tmp_path.iterdir()) == []
