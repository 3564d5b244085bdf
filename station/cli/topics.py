"""`flawline topics`: the line's Kafka topics."""

from __future__ import annotations

from typing import Annotated

import typer

from flawline.errors import UsageError
from station.cli.options import Config, debuggable, settings_of

app = typer.Typer(help="The line's Kafka topics.", no_args_is_help=True)


@app.command("create")
@debuggable
def create(config: Config = None) -> None:
    """Create the topics that are missing, and give the others the retention of the settings."""
    from flawline import kafka_clients, topics
    from ledger import topic_retention
    from station import terminal

    settings = settings_of(config)
    kafka_clients.ensure_topics(settings)
    for name in topic_retention.change(settings):
        terminal.out().print(f"{name}: has another retention now", highlight=False)
    for name, topic in topics.named(settings.kafka.topic_prefix):
        terminal.out().print(f"{name}: written by {topic.writers}, read by {topic.readers}", highlight=False)


@app.command("acls")
@debuggable
def acls(
    role: Annotated[list[str] | None, typer.Option(help="Only this role; may be repeated.")] = None,
    principal: Annotated[
        str, typer.Option(help="Who gets the rights; {role} stands for the role's name.")
    ] = "User:flawline-{role}",
    config: Config = None,
) -> None:
    """Print what kafka-acls.sh must be given, so that each role may do its work and nothing else."""
    from flawline.rights import ROLES, grants
    from station import terminal

    settings = settings_of(config)
    for name in role or ROLES:
        if name not in ROLES:
            raise UsageError(f"--role {name}: choose from {', '.join(ROLES)}")
        terminal.out().print(f"# {name}", highlight=False)
        rights = ROLES[name].rights(settings.kafka.topic_prefix, exactly_once=settings.kafka.exactly_once)
        for line in grants(rights, principal.replace("{role}", name)):
            terminal.out().print(f"kafka-acls.sh --bootstrap-server {settings.bootstrap_servers} {line}",
                                 highlight=False)  # fmt: skip
