"""The votes of a job's items are on record where they follow from other jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("eval_jobs", sa.Column("votes", sa.Float(), nullable=False, server_default="0"))


def downgrade() -> None:
    raise RuntimeError("a store is not taken back to an earlier schema: restore a copy from before the upgrade")
