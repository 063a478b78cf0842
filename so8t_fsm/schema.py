"""The tables, and how an existing database gets them.

Times are seconds since the epoch (UTC) as floats; JSON columns hold messages that older and newer versions must both
be able to read: new keys may be added, the meaning of a key never changes, readers use ``.get``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

from so8t_fsm.states import STATES

HEAD = "0003"
"""The newest migration this version knows; a test holds it against the migrations directory."""

APPLICATION_ID = 0x534F3854  # "SO8T"

metadata = sa.MetaData(naming_convention={
    "pk": "pk_%(table_name)s", "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s", "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
})

Json = sa.JSON(none_as_null=True)
STATE_CHECK = "state IN ({})".format(", ".join(f"'{s}'" for s in STATES))


def _run_key() -> sa.Column[str]:
    return sa.Column("run_id", sa.String(64), sa.ForeignKey("run.id"), nullable=False)


run = sa.Table(
    "run", metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("state", sa.String(32), nullable=False),
    sa.Column("step", sa.String(64)),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("rev", sa.Integer, nullable=False, default=0),
    sa.Column("epoch", sa.Integer, nullable=False, default=0),
    sa.Column("steps", Json, nullable=False),
    sa.Column("config", Json, nullable=False),
    sa.Column("config_path", sa.Text),
    sa.Column("parent", sa.String(64)),
    sa.Column("reuse", Json),
    sa.Column("incident", Json),
    sa.Column("ledgers", Json),
    sa.Column("next_retry_at", sa.Float),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("finished_at", sa.Float),
    sa.CheckConstraint(STATE_CHECK, name="state"),
)

history = sa.Table(
    "history", metadata,
    _run_key(),
    sa.Column("rev", sa.Integer, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("from_state", sa.String(32), nullable=False),
    sa.Column("to_state", sa.String(32), nullable=False),
    sa.Column("trigger", sa.String(64), nullable=False),
    sa.Column("step", sa.String(64)),
    sa.Column("attempt", sa.Integer),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("detail", Json),
    sa.PrimaryKeyConstraint("run_id", "rev"),
)

attempt = sa.Table(
    "attempt", metadata,
    _run_key(),
    sa.Column("step", sa.String(64), nullable=False),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float),
    sa.Column("pid", sa.Integer),
    sa.Column("pid_started", sa.Float),
    sa.Column("host", sa.Text),
    sa.Column("progress", Json),
    sa.Column("failure", Json),
    sa.PrimaryKeyConstraint("run_id", "step", "n"),
    sa.CheckConstraint("status IN ('running', 'committed', 'failed', 'stopped', 'cut_off')", name="status"),
)

artifact = sa.Table(
    "artifact", metadata,
    _run_key(),
    sa.Column("step", sa.String(64), nullable=False),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("identity", sa.String(64), nullable=False),
    sa.Column("inputs", Json, nullable=False),
    sa.Column("settings", Json, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("reused_from", sa.String(64)),
    sa.Column("committed_at", sa.Float, nullable=False),
    sa.PrimaryKeyConstraint("run_id", "step", "n"),
    sa.CheckConstraint("status IN ('live', 'damaged', 'superseded')", name="status"),
)

checkpoint = sa.Table(
    "checkpoint", metadata,
    _run_key(),
    sa.Column("step", sa.String(64), nullable=False),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("identity", sa.String(64), nullable=False),
    sa.Column("position", sa.Float, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("verified_at", sa.Float),
    sa.Column("committed_at", sa.Float, nullable=False),
    sa.PrimaryKeyConstraint("run_id", "step", "n"),
    sa.CheckConstraint("status IN ('live', 'damaged', 'pruned')", name="status"),
)

lease = sa.Table(
    "lease", metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("host", sa.Text),
    sa.Column("boot", sa.Text),
    sa.Column("pid", sa.Integer),
    sa.Column("pid_started", sa.Float),
    sa.Column("heartbeat_at", sa.Float),
    sa.Column("expires_at", sa.Float),
)

command = sa.Table(
    "command", metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    _run_key(),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("args", Json, nullable=False),
    sa.Column("operator", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("taken_at", sa.Float),
    sa.Column("outcome", sa.Text),
)

override = sa.Table(
    "override", metadata,
    _run_key(),
    sa.Column("key", sa.String(128), nullable=False),
    sa.Column("value", Json),
    sa.Column("was", Json),
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.PrimaryKeyConstraint("run_id", "key"),
)

ledger = sa.Table(
    "ledger", metadata,
    _run_key(),
    sa.Column("key", sa.String(128), nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("position", sa.Float),
    sa.Column("updated_at", sa.Float, nullable=False),
    sa.PrimaryKeyConstraint("run_id", "key"),
)

event = sa.Table(
    "event", metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.String(64), sa.ForeignKey("run.id")),
    sa.Column("step", sa.String(64)),
    sa.Column("attempt", sa.Integer),
    sa.Column("source", sa.String(16), nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("data", Json),
    sa.Index("ix_event_run_id_step_attempt", "run_id", "step", "attempt"),
)

incident = sa.Table(
    "incident", metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.String(64), sa.ForeignKey("run.id")),
    sa.Column("step", sa.String(64)),
    sa.Column("attempt", sa.Integer),
    sa.Column("state", sa.String(32), nullable=False),
    sa.Column("rule", sa.String(128)),
    sa.Column("severity", sa.String(16), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("opened_at", sa.Float, nullable=False),
    sa.Column("closed_at", sa.Float),
    sa.Column("detail", Json),
    sa.CheckConstraint("status IN ('open', 'recovering', 'recovered', 'escalated', 'withdrawn', 'observed')",
                       name="status"),
)

action = sa.Table(
    "action", metadata,
    sa.Column("incident_id", sa.Integer, sa.ForeignKey("incident.id"), nullable=False),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("args", Json),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("intent_at", sa.Float, nullable=False),
    sa.Column("outcome_at", sa.Float),
    sa.Column("outcome", Json),
    sa.PrimaryKeyConstraint("incident_id", "seq"),
    sa.CheckConstraint("status IN ('intent', 'done', 'failed', 'skipped')", name="status"),
)

log_mark = sa.Table(
    "log_mark", metadata,
    sa.Column("path", sa.String(1024), primary_key=True),
    sa.Column("file", sa.String(64), nullable=False),
    sa.Column("head", sa.String(64), nullable=False),
    sa.Column("head_bytes", sa.Integer, nullable=False),
    sa.Column("offset", sa.BigInteger, nullable=False),
    sa.Column("line", sa.BigInteger, nullable=False),
    sa.Column("encoding", sa.String(16), nullable=False),
    sa.Column("updated_at", sa.Float, nullable=False),
)

watcher = sa.Table(
    "watcher", metadata,
    sa.Column("name", sa.String(16), nullable=False),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("pid_started", sa.Float, nullable=False),
    sa.Column("way", sa.Text, nullable=False),
    sa.Column("blind", sa.Text),
    sa.Column("at", sa.Float, nullable=False),
    sa.PrimaryKeyConstraint("name", "host"),
)


class StateTooNew(Exception):
    """The state directory was written by a newer version of so8t."""


def current_version(connection: sa.Connection) -> str | None:
    """The migration the database is at, or None when it is empty."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def known_versions() -> list[str]:
    """Every migration this version carries, oldest first (read from the file names, so that alembic stays unloaded)."""
    return sorted(p.name.split("_")[0] for p in (Path(__file__).parent / "migrations" / "versions").glob("[0-9]*.py"))


def migrate(connection: sa.Connection, to: str = "head") -> None:
    """Apply the missing migrations inside the caller's transaction.

    Raises:
        StateTooNew: the database is at a migration this version does not know.
    """
    version = current_version(connection)
    if version == HEAD and to == "head":
        return
    if version is not None and version not in known_versions():
        raise StateTooNew(
            f"the state was written by a newer so8t (its schema is {version}, this version knows {HEAD}); "
            "install that version, or start with an empty state directory"
        )
    from alembic import command as alembic_command

    alembic_command.upgrade(alembic_config(connection), to)


def alembic_config(connection: sa.Connection) -> Any:
    """alembic's configuration, bound to one open connection; no alembic.ini is needed."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
