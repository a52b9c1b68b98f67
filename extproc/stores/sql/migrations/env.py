"""What Alembic runs: the steps that are missing, in the transaction that it is given."""

from alembic import context

from extproc.stores.sql.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table="extproc_version",  # the database may be shared with others who use Alembic
    render_as_batch=True,  # SQLite cannot alter a column
)
with context.begin_transaction():
    context.run_migrations()
