"""Where things lie below the home folder, and in the runtime folder of sockets. Names only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Home:
    """Everything is 0600 in folders of 0700. `run` holds unix sockets: short.

    Paths of unix sockets over 107 bytes can't be bound, and home folders can be deep: hence the
    folder of its own.
    """

    root: Path
    run: Path

    @property
    def database(self) -> Path:
        return self.root / "understudy.db"

    @property
    def files(self) -> Path:
        """The folder of large parts of bodies, see `store.media`."""
        return self.root / "files"

    @property
    def spool(self) -> Path:
        return self.root / "spool"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def kill(self) -> Path:
        return self.root / "kill"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def install_key(self) -> Path:
        return self.root / "install.key"

    @property
    def admin_token(self) -> Path:
        return self.root / "admin.token"

    @property
    def receipts(self) -> Path:
        """The folder of what was forgotten, without saying whose it was."""
        return self.root / "receipts"

    @property
    def state(self) -> Path:
        """What the running sidecar says of itself: pids and addresses, as JSON."""
        return self.root / "state.json"

    @property
    def authority(self) -> Path:
        """The folder of the certificate authority, see `proxy.authority`."""
        return self.root / "ca"

    @property
    def recorder_socket(self) -> Path:
        return self.run / "recorder.sock"

    def model_socket(self, candidate: str) -> Path:
        return self.run / f"{candidate}.sock"
