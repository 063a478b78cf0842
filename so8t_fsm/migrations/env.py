"""alembic's entry: always runs on the connection, and inside the transaction, of whoever called ``migrate``."""

from alembic import context

from so8t_fsm.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
