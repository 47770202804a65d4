"""How calls stand between two requests, for processes that share them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

revision = "4"
down_revision = "3"


def upgrade() -> None:
    """Make the tables as they were in version 4."""
    moment = sa.Text().with_variant(TIMESTAMP(timezone=True), "postgresql")
    op.create_table(
        "standings",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("process", sa.Text, nullable=False),
        sa.Column("line", sa.Text, nullable=False),
        sa.Column("nonce", sa.Text, nullable=False),
        sa.Column("account_sid", sa.Text, nullable=False),
        sa.Column("past", sa.Text, nullable=False),
        sa.Column("until", moment),
        sa.Column("news", sa.Boolean, nullable=False),
        sa.Column("at", moment, nullable=False),
        sa.Column("state", sa.JSON().with_variant(JSONB(), "postgresql")),
    )
    op.create_index("standings_by_time", "standings", ["at"])
    op.create_index("standings_by_line", "standings", ["line", "process"])
    op.add_column(
        "processes", sa.Column("lines", sa.Integer, nullable=False, server_default=sa.text("0"))
    )
