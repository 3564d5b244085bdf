"""An inspector with the plain detector in a process of its own, without Ray: `python -m` this FILE SLOT."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import tomli_w

from flawline.logs import configure_logging
from flawline.settings.tree import Settings, load_settings
from flawline.stopping import stop_on_signals
from tests.workers.line import load_any
from workers.active_model import ModelRef
from workers.inspector import Inspector, member_name


def start(settings: Settings, folder: Path, slot: int = 0) -> subprocess.Popen[bytes]:
    """Start the inspector of a slot; its log is the file SLOT.log of `folder`, and a stop ends it with 0."""
    file = folder / f"{slot}.toml"
    file.write_text(tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True, exclude_defaults=True)))
    with (folder / f"{slot}.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", __name__, str(file), str(slot)], stdout=log, stderr=log)


def main() -> None:
    """Inspect until a signal to stop."""
    settings = load_settings(Path(sys.argv[1]))
    configure_logging(settings, "work")
    inspector = Inspector(
        settings, member_name(settings, int(sys.argv[2])), ModelRef(str(settings.worker.model)), load_any
    )
    with stop_on_signals() as stop:
        threading.Thread(target=lambda: stop.wait() and inspector.stop(), daemon=True).start()
        inspector.run()


if __name__ == "__main__":
    main()
