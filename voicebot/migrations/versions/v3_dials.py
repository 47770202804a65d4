"""Calls that were let out, which the limits count, and those that were not."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "3"
down_revision = "2"


def upgrade() -> None:
    """Make the tables as they were in version 3."""
    moment = sa.Text().with_variant(TIMESTAMP(timezone=True), "postgresql")
    op.create_table(
        "dials",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("call_sid", sa.Text),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("destination", sa.Text, nullable=False),
        sa.Column("at", moment, nullable=False),
        sa.Column("until", moment, nullable=False),
        sa.Column("held", sa.Integer, nullable=False),
        sa.Column("used", sa.Integer),
    )
    op.create_index("dials_by_time", "dials", ["at"])
    op.create_index("dials_by_call", "dials", ["call_sid"])
    op.create_table(
        "refusals",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("at", moment, nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("to_number", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("setting", sa.Text, nullable=False),
        sa.Column("process", sa.Text, nullable=False),
    )
    op.create_index("refusals_by_time", "refusals", ["at"])
