"""`flawline objects`: the store of large frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from flawline.errors import FlawlineError, UsageError
from station.cli.options import Config, debuggable, settings_of

if TYPE_CHECKING:
    from flawline.object_store import ObjectStore
    from flawline.settings.tree import Settings

app = typer.Typer(help="The store of large frames (claim check).", no_args_is_help=True)


def store_of(settings: Settings) -> ObjectStore:
    """Return the line's object store. Raises UsageError when none is set."""
    from flawline.object_store import object_store

    store = object_store(settings)
    if store is None:
        raise UsageError("frames.objects_url is not set, so there is no object store: set it for all roles")
    return store


@app.command("create")
@debuggable
def create(config: Config = None) -> None:
    """Make the store, or accept the one that lies there in place of an earlier one, for this machine's producers."""
    from flawline.object_store import StoreAway
    from producers import claim_checks
    from station import terminal

    settings = settings_of(config)
    store = store_of(settings)
    try:
        marker = claim_checks.create(store, claim_checks.Note(settings.data_dir))
        store.require()
    except StoreAway as error:
        raise FlawlineError(str(error)) from error
    terminal.out().print(
        f"object store {store.root} of line {marker.line} has the id {marker.id}", highlight=False, soft_wrap=True
    )


@app.command("collect")
@debuggable
def collect(config: Config = None) -> None:
    """Remove the objects that no frame and no dead letter refers to, once; the role ledger does it regularly."""
    import threading
    from contextlib import closing

    from ledger.object_collection import Collector
    from station import terminal

    settings = settings_of(config)
    with closing(Collector(settings, store_of(settings), threading.Event())) as collector:
        done = collector.collect()
    terminal.out().print(
        f"{done.removed} unused objects ({done.removed_bytes / 1e6:.1f} MB) are removed, {done.objects} "
        f"({done.stored_bytes / 1e6:.1f} MB) remain"
        + (
            f"; {done.early} ({done.early_bytes / 1e6:.1f} MB) went before their time, for want of room"
            * bool(done.early)
        ),
        highlight=False,
    )
