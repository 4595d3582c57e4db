"""A worker process ends with the command that started it, even if that was killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import os, time
from stepdrop_rl.interrupt import Workers

if __name__ == "__main__":
    with Workers() as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    try:  # a zombie that nobody has waited for has ended too
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="tells zombies by /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_does_not_outlive_its_command(tmp_path, number):
    script = tmp_path / "command.py"
    script.write_text(SCRIPT)
    command = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        assert command.stdout is not None
        worker = int(command.stdout.readline())
        assert alive(worker)
        command.send_signal(number)
        assert command.wait(10) == -number
        deadline = time.monotonic() + 10
        while alive(worker) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not alive(worker)
    finally:
        command.kill()
        command.stdout.close()
