"""A run remembers after which step it was resumed last."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("acknowledged_step", sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    raise RuntimeError("a store is not taken back to an earlier schema: restore a copy from before the upgrade")
