"""Run the embedded broker in the foreground: `python -m embedded_broker --data DIR`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from embedded_broker import ADDRESS_FILE, READY_PREFIX, UNSUPPORTED
from embedded_broker.broker import BrokerOptions
from embedded_broker.server import serve
from embedded_broker.store import FsyncPolicy
from flawline.errors import FlawlineError
from flawline.private_files import keep_files_private
from flawline.stopping import follow_parent


def _number(kind: type[int] | type[float], low: float, high: float) -> Callable[[str], float]:
    """Return a parser of numbers within bounds."""

    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low:g} and {high:g}")
        return value

    parse.__name__ = "number"  # argparse puts this name into its message
    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m embedded_broker",
        description="A single-node broker that speaks the Kafka protocol, for demo, tests and one-box lines.",
        epilog=f"Only in Apache Kafka: {'; '.join(UNSUPPORTED.values())}.",
    )
    defaults = BrokerOptions(Path())
    seconds = _number(float, 0.01, 86_400)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of all data")
    parser.add_argument(
        "--port", type=_number(int, 0, 65535), default=defaults.port, help="0 takes a free one (default: %(default)s)"
    )
    parser.add_argument("--host", default=defaults.host, help="address to listen on (default: %(default)s)")
    parser.add_argument("--advertised-host", metavar="HOST", help="address that clients are told to use")
    parser.add_argument(
        "--advertised-port", type=_number(int, 1, 65535), metavar="PORT", help="port that clients are told to use"
    )
    parser.add_argument("--allow-remote", action="store_true", help="listen beyond this machine, without any security")
    parser.add_argument(
        "--fsync",
        type=FsyncPolicy,
        choices=list(FsyncPolicy),
        default=defaults.fsync,
        metavar="|".join(policy.value for policy in FsyncPolicy),
        help="when data is forced to the disk (default: interval)",
    )
    parser.add_argument("--fsync-interval", type=seconds, default=defaults.fsync_interval_s, metavar="SECONDS")
    parser.add_argument(
        "--housekeeping-interval", type=seconds, default=defaults.housekeeping_interval_s, metavar="SECONDS"
    )
    parser.add_argument(
        "--min-free-bytes",
        type=_number(int, 0, 1 << 62),
        default=defaults.min_free_bytes,
        metavar="BYTES",
        help="of the disk; below, records that every group has read go before their time (default: %(default)s, never)",
    )
    parser.add_argument(
        "--partitions",
        type=_number(int, 1, 1000),
        default=defaults.default_partitions,
        help="of a topic that is created on first use",
    )
    parser.add_argument("--no-auto-create", action="store_true", help="do not create topics on first use")
    parser.add_argument(
        "--group-initial-delay", type=_number(float, 0, 60), default=defaults.group_initial_delay_s, metavar="SECONDS"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log events too, not only problems")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code: 0, 1 when the work failed, 2 for wrong usage."""
    args = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    options = BrokerOptions(
        data_dir=args.data,
        host=args.host,
        port=args.port,
        advertised_host=args.advertised_host,
        advertised_port=args.advertised_port,
        allow_remote=args.allow_remote,
        fsync=args.fsync,
        fsync_interval_s=args.fsync_interval,
        housekeeping_interval_s=args.housekeeping_interval,
        default_partitions=args.partitions,
        auto_create_topics=not args.no_auto_create,
        group_initial_delay_s=args.group_initial_delay,
        min_free_bytes=args.min_free_bytes,
    )

    def listening(host: str, port: int) -> None:
        # Whoever asked for port 0 reads here which one it is; written before the line that says so.
        (args.data / ADDRESS_FILE).write_text(f"{host}:{port}\n")
        print(f"{READY_PREFIX}{host}:{port}", flush=True)

    follow_parent()
    keep_files_private()
    try:
        asyncio.run(serve(options, listening))
    except FlawlineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
