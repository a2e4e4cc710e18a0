"""Finding what was collected of a run takes no look at all that was not."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("batches_collected", "batches", ["run_id", "collected", "step"], unique=False)


def downgrade() -> None:
    raise RuntimeError("a store is not taken back to an earlier schema: restore a copy from before the upgrade")
