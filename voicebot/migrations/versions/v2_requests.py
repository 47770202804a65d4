"""Requests that may come twice and must be done once."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

revision = "2"
down_revision = "1"


def upgrade() -> None:
    """Make the table as it was in version 2."""
    op.create_table(
        "requests",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column(
            "at", sa.Text().with_variant(TIMESTAMP(timezone=True), "postgresql"), nullable=False
        ),
        sa.Column("answer", sa.JSON().with_variant(JSONB(), "postgresql")),
    )
    op.create_index("requests_by_time", "requests", ["at"])
