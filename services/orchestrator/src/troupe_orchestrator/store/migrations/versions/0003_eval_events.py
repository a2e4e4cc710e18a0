"""Eval jobs have numbered events, a target, settings of their own and a run that they may belong to; loans of weights."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "eval_events",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("event_id", sa.BigInteger(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["eval_jobs.job_id"]),
        sa.PrimaryKeyConstraint("job_id", "event_id"),
    )
    op.create_table(
        "weight_loans",
        sa.Column("policy_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("policy_id"),
    )
    op.add_column("eval_jobs", sa.Column("target", sa.LargeBinary(), nullable=False, server_default=""))
    op.add_column("eval_jobs", sa.Column("serving", sa.Text(), nullable=False, server_default="{}"))
    op.add_column("eval_jobs", sa.Column("seconds", sa.Float(), nullable=False, server_default="0"))
    op.add_column("eval_jobs", sa.Column("run_id", sa.String(), nullable=False, server_default=""))
    op.add_column("eval_jobs", sa.Column("step", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index("eval_jobs_by_run", "eval_jobs", ["run_id", "step"], unique=False)
    op.add_column("eval_items", sa.Column("faulted", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    raise RuntimeError("a store is not taken back to an earlier schema: restore a copy from before the upgrade")
