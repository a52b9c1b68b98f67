"""The audit: records, their verdicts, the words that they are found by, and who has looked."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    serial = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "audit_records",
        sa.Column("n", serial, primary_key=True),
        sa.Column("call_id", sa.Text, nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("consumer", sa.Text, nullable=False),
        sa.Column("team", sa.Text, nullable=False),
        sa.Column("person", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("how", sa.Text, nullable=False),
        sa.Column("policy", sa.Text, nullable=False),
        sa.Column("status", sa.BigInteger, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.UniqueConstraint("call_id", name="audit_records_call_id"),
        sqlite_autoincrement=True,  # a number is never used twice, so that what follows it is what came later
    )
    op.create_index("audit_records_time", "audit_records", ["time"])
    op.create_index("audit_records_consumer_time", "audit_records", ["consumer", "time"])
    op.create_index("audit_records_person_time", "audit_records", ["person", "time"])
    op.create_table(
        "audit_verdicts",
        sa.Column("id", serial, primary_key=True),
        sa.Column("n", sa.BigInteger, nullable=False),
        sa.Column("check", sa.Text, nullable=False),
        sa.Column("category", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
    )
    op.create_index("audit_verdicts_n", "audit_verdicts", ["n"])
    op.create_index("audit_verdicts_category", "audit_verdicts", ["category", "n"])
    op.create_table(
        "audit_readings",
        sa.Column("id", serial, primary_key=True),
        sa.Column("time", sa.Double, nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("what", sa.Text, nullable=False),
        sa.Column("asked", sa.Text, nullable=False),
        sa.Column("found", sa.BigInteger, nullable=False),
    )
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            "CREATE VIRTUAL TABLE audit_words USING fts5"
            "(tokens, detail = none, tokenize = 'unicode61 remove_diacritics 0')"
        )
    else:
        op.execute("CREATE TABLE audit_words (n BIGINT PRIMARY KEY, tokens TSVECTOR NOT NULL)")
        op.execute("CREATE INDEX audit_words_tokens ON audit_words USING gin (tokens)")
