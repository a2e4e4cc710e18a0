"""Which files a run has, and what they take: batches in a table of their own, tree files apart from their executions.

Files written before this revision count 0 bytes, since nobody noted their size.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("checkpoints", "groups"):
        op.add_column(table, sa.Column("bytes", sa.BigInteger(), nullable=False, server_default="0"))
    _batches_from_steps()
    _tree_files_from_executions()


def _batches_from_steps() -> None:
    batches = op.create_table(
        "batches",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("policy_id", sa.String(), nullable=False),
        sa.Column("update_number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("file", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sequences", sa.BigInteger(), nullable=False),
        sa.Column("optimization", sa.JSON(), nullable=False),
        sa.Column("collected", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"]),
        sa.PrimaryKeyConstraint("run_id", "policy_id", "update_number"),
    )
    op.create_index("batches_by_step", "batches", ["run_id", "step"])
    connection = op.get_bind()
    steps = sa.table("steps", sa.column("run_id"), sa.column("step"), sa.column("batches", sa.JSON()))
    sealed = [
        {
            "run_id": row.run_id,
            "step": row.step,
            "policy_id": batch["policy_id"],
            "update_number": batch["update"],
            "digest": batch["digest"],
            "file": batch["file"],
            "bytes": 0,
            "sequences": batch["sequences"],
            "optimization": batch["optimization"],
            "collected": False,
        }
        for row in connection.execute(sa.select(steps))
        for batch in row.batches
    ]
    if sealed:
        connection.execute(sa.insert(batches), sealed)
    op.drop_column("steps", "batches")


def _tree_files_from_executions() -> None:
    op.create_table(
        "tree_files",
        sa.Column("file_id", sa.Integer(), nullable=False),
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("collected", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("file_id"),
    )
    op.create_index("tree_files_by_path", "tree_files", ["scope", "step", "path"], unique=True)
    op.execute(
        "INSERT INTO tree_files (scope, step, path, bytes, collected) "
        "SELECT DISTINCT scope, step, file, 0, false FROM executions"
    )
    op.rename_table("executions", "executions_before")
    op.create_table(
        "executions",
        sa.Column("execution_id", sa.String(), nullable=False),
        sa.Column("file_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["file_id"], ["tree_files.file_id"]),
        # Named, since the table before keeps PostgreSQL's own name for it until it is dropped.
        sa.PrimaryKeyConstraint("execution_id", name="executions_by_id"),
    )
    op.execute(
        "INSERT INTO executions (execution_id, file_id) SELECT execution_id, file_id FROM executions_before "
        "JOIN tree_files ON tree_files.scope = executions_before.scope AND tree_files.step = executions_before.step "
        "AND tree_files.path = executions_before.file"
    )
    op.drop_table("executions_before")


def downgrade() -> None:
    raise RuntimeError("the schema only moves forward: restore the store from a backup to go back")
