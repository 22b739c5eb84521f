"""The first schema: devices, receipts, openings of stages, audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables (frozen here: a later schema is a later migration)."""
    text, name, number = sa.Text(), sa.String(128), sa.BigInteger()
    op.create_table(
        "device",
        sa.Column("id", name, primary_key=True),
        sa.Column("site", name, nullable=False, index=True),
        *(sa.Column(column, name, nullable=False) for column in ("profile", "line")),
        *(sa.Column(column, text, nullable=False) for column in ("labels", "key")),
    )
    op.create_table(
        "receipt",
        sa.Column("device", name, sa.ForeignKey("device.id"), primary_key=True),
        sa.Column("sequence", number, primary_key=True),
        sa.Column("release", name, nullable=False, index=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("patch", sa.String(64), nullable=False),
        sa.Column("generation", number, nullable=False),
        sa.Column("reason", text, nullable=False),
        *(sa.Column(column, number, nullable=False) for column in ("time", "received")),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("batch", number, nullable=False, index=True),
    )
    op.create_table(
        "opening",
        *(sa.Column(column, name, primary_key=True) for column in ("site", "release", "stage")),
        sa.Column("opened", number, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("number", number, primary_key=True, autoincrement=False),
        sa.Column("time", number, nullable=False),
        sa.Column("event", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(256), nullable=False),
        sa.Column("data", text, nullable=False),
        *(sa.Column(column, sa.String(64), nullable=False) for column in ("previous", "hash")),
    )
