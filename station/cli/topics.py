"""`flawline topics`: the line's Kafka topics."""

from __future__ import annotations

import typer

from station.cli.options import Config, debuggable, settings_of

app = typer.Typer(help="The line's Kafka topics.", no_args_is_help=True)


@app.command("create")
@debuggable
def create(config: Config = None) -> None:
    """Create the topics that are missing."""
    from flawline import kafka_clients, topics
    from station import terminal

    settings = settings_of(config)
    kafka_clients.ensure_topics(settings)
    for name, topic in topics.named(settings.kafka.topic_prefix):
        terminal.out().print(f"{name}: written by {topic.writers}, read by {topic.readers}", highlight=False)
