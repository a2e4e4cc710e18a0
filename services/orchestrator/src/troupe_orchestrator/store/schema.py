"""The tables. SQLite and PostgreSQL; changed only through a migration in `migrations/versions`."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    false,
)


class Name(TypeDecorator[str]):
    """A short text, such as an id. None that is stored has a NUL; one that is asked for may have, and is none of them.
    PostgreSQL takes no NUL: U+FFFD is in its place.
    """

    impl: type[String] = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else value.replace("\0", "\N{REPLACEMENT CHARACTER}")


class Words(Name):
    """A text in words of others, in which a NUL may be."""

    impl = Text
    cache_ok = True


metadata = MetaData()

lease = Table(
    "lease",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("store_id", Name, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("holder", Name, nullable=False),
    Column("expires_at", Float, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("run_id", Name, primary_key=True),
    Column("state", Name, nullable=False),
    Column("reason", Words, nullable=False),
    Column("config", Text, nullable=False),
    Column("provenance", JSON, nullable=False),
    Column("total_steps", BigInteger, nullable=False),
    Column("folder", Name, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("acknowledged_step", BigInteger, nullable=False, server_default="0"),
)

steps = Table(
    "steps",
    metadata,
    Column("run_id", ForeignKey("runs.run_id"), primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("state", Name, nullable=False),
    Column("task_ids", JSON, nullable=False),
    Column("queue", JSON, nullable=False),
    Column("versions", JSON, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("ends_stage", Boolean, nullable=False, server_default=false()),
    Column("watch", JSON, nullable=False, server_default="{}"),
)

batches = Table(
    "batches",
    metadata,
    Column("run_id", ForeignKey("runs.run_id"), primary_key=True),
    Column("policy_id", Name, primary_key=True),
    Column("update_number", BigInteger, primary_key=True, autoincrement=False),
    Column("step", BigInteger, nullable=False),
    Column("digest", Name, nullable=False),
    Column("file", Name, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sequences", BigInteger, nullable=False),
    Column("optimization", JSON, nullable=False),
    Column("collected", Boolean, nullable=False),
)

groups = Table(
    "groups",
    metadata,
    Column("run_id", Name, primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("task_id", Name, primary_key=True),
    Column("file", Name, nullable=False),
    Column("bytes", BigInteger, nullable=False, server_default="0"),
    Column("versions", JSON, nullable=False),
    Column("digest", Name, nullable=False, server_default=""),
)

drops = Table(
    "drops",
    metadata,
    Column("run_id", Name, primary_key=True),
    Column("task_id", Name, primary_key=True),
    Column("count", Integer, nullable=False),
    Column("quarantined", Boolean, nullable=False),
    Column("reason", Words, nullable=False),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("run_id", Name, primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("manifest", JSON, nullable=False),
    Column("bytes", BigInteger, nullable=False, server_default="0"),
)

events = Table(
    "events",
    metadata,
    Column("run_id", Name, primary_key=True),
    Column("event_id", BigInteger, primary_key=True),
    Column("payload", LargeBinary, nullable=False),
)

tree_files = Table(
    "tree_files",
    metadata,
    Column("file_id", Integer, primary_key=True),
    Column("scope", Name, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("path", Name, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("collected", Boolean, nullable=False),
    Column("digest", Name, nullable=False, server_default=""),
)

executions = Table(
    "executions",
    metadata,
    Column("execution_id", Name, primary_key=True),
    Column("file_id", ForeignKey("tree_files.file_id"), nullable=False),
)

eval_jobs = Table(
    "eval_jobs",
    metadata,
    Column("job_id", Name, primary_key=True),
    Column("state", Name, nullable=False),
    Column("reason", Words, nullable=False),
    Column("request", LargeBinary, nullable=False),
    Column("dataset_file", Name, nullable=False),
    Column("problems", Integer, nullable=False),
    Column("errors", JSON, nullable=False),
    Column("versions", JSON, nullable=False),
    Column("summary", LargeBinary),
    Column("created_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("target", LargeBinary, nullable=False, server_default=""),
    Column("serving", Text, nullable=False, server_default="{}"),
    Column("seconds", Float, nullable=False, server_default="0"),
    Column("run_id", Name, nullable=False, server_default=""),
    Column("step", BigInteger, nullable=False, server_default="0"),
    Column("votes", Float, nullable=False, server_default="0"),
)

eval_items = Table(
    "eval_items",
    metadata,
    Column("job_id", ForeignKey("eval_jobs.job_id"), primary_key=True),
    Column("problem_id", Name, primary_key=True),
    Column("sample", Integer, primary_key=True),
    Column("family", Name, nullable=False),
    Column("parseable", Boolean, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("faulted", Boolean, nullable=False, server_default=false()),
)

eval_events = Table(
    "eval_events",
    metadata,
    Column("job_id", ForeignKey("eval_jobs.job_id"), primary_key=True),
    Column("event_id", BigInteger, primary_key=True),
    Column("payload", LargeBinary, nullable=False),
)

weight_loans = Table(
    "weight_loans",
    metadata,
    Column("policy_id", Name, primary_key=True),
    Column("job_id", Name, nullable=False),
    Column("version", Name, nullable=False),
    Column("model", Name, nullable=False),
)

object_requests = Table(
    "object_requests",
    metadata,
    Column("uid", Name, primary_key=True),
    Column("kind", Name, nullable=False),
    Column("namespace", Name, nullable=False),
    Column("name", Name, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("reason", Name, nullable=False),
    Column("message", Words, nullable=False),
)

Index("batches_by_step", batches.c.run_id, batches.c.step)
Index("batches_collected", batches.c.run_id, batches.c.collected, batches.c.step)
Index("tree_files_by_path", tree_files.c.scope, tree_files.c.step, tree_files.c.path, unique=True)
Index("eval_jobs_by_run", eval_jobs.c.run_id, eval_jobs.c.step)
