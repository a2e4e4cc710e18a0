"""Files of trees have a SHA-256 on record, as batches have; those written before this revision have none."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("tree_files", "groups"):
        op.add_column(table, sa.Column("digest", sa.String(), nullable=False, server_default=""))


def downgrade() -> None:
    raise RuntimeError("a store is not taken back to an earlier schema: restore a copy from before the upgrade")
