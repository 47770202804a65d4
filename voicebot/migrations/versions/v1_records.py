"""Records of calls: calls, turns, tools, and the processes that hold them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

revision = "1"
down_revision = None


def upgrade() -> None:
    """Make the tables as they were in version 1; what they are now is in `schema.py`."""
    moment = sa.Text().with_variant(TIMESTAMP(timezone=True), "postgresql")
    json = sa.JSON().with_variant(JSONB(), "postgresql")

    op.create_table(
        "calls",
        sa.Column("sid", sa.Text, primary_key=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("direction", "from_number")),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("to_number", "status")),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("updated_at", moment, nullable=False),
        sa.Column("ended_at", moment),
        sa.Column("duration_s", sa.Integer),
        *(sa.Column(name, sa.Text) for name in ("stream", "stream_error", "outcome", "process")),
        sa.Column("live", sa.Boolean, nullable=False),
        sa.Column("streams", sa.Integer, nullable=False),
        sa.Column("answered_by", sa.Text),
        *(sa.Column(name, json) for name in ("metadata", "parameters", "summary")),
    )
    op.create_index("calls_by_time", "calls", ["created_at", "sid"])
    live = sa.text("live")
    op.create_index("calls_live", "calls", ["process"], sqlite_where=live, postgresql_where=live)
    op.create_table(
        "turns",
        sa.Column("call_sid", sa.Text, _call(), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("caller", "generated", "heard")),
        *(sa.Column(name, sa.Boolean, nullable=False) for name in ("interrupted", "goodbye")),
        sa.Column("began", sa.Float, nullable=False),
        *(sa.Column(n, sa.Float) for n in ("fell", "first_text", "first_audio", "first_media")),
    )
    op.create_table(
        "tools",
        sa.Column("call_sid", sa.Text, _call(), primary_key=True),
        sa.Column("turn", sa.Integer, primary_key=True),
        sa.Column("place", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("arguments", json, nullable=False),
        sa.Column("began", sa.Float, nullable=False),
        sa.Column("ended", sa.Float),
        sa.Column("result", sa.Text, nullable=False),
    )
    op.create_table(
        "processes",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("place", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("seen_at", moment, nullable=False),
    )


def _call() -> sa.ForeignKey:
    return sa.ForeignKey("calls.sid", ondelete="CASCADE")
