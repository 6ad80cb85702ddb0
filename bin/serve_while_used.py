"""`understudy serve` for as long as a `run` uses it, however each of them ends.

python -m bin.serve_while_used USERS serve ...

Every `run` holds a shared lock on the file USERS. Whoever gets it for itself alone knows that there
is none left; the lock is then kept to the end, so that a new one waits until this sidecar is gone.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
from pathlib import Path

from bin.cli import main
from bin.run_sidecar import wait_for_recorder
from policies.home import Home


def _stop_when_unused(users: int, home: Home) -> None:
    fcntl.flock(users, fcntl.LOCK_EX)
    wait_for_recorder(home)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    held = os.open(sys.argv[1], os.O_RDWR | os.O_CLOEXEC)
    root = Path(sys.argv[1]).parent
    arguments = held, Home(root, root)
    threading.Thread(target=_stop_when_unused, args=arguments, daemon=True).start()
    main(sys.argv[2:], prog_name="understudy")
