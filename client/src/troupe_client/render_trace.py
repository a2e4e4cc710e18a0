"""`troupe trace` on the terminal: one execution, whole: script, turns, tokens, reward terms, advantages."""

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from troupe.v1 import common_pb2, training_pb2

from troupe_client.render_solve import message_line, show_script
from troupe_client.render_text import plain, visible


def show(console: Console, trace: training_pb2.ExecutionTrace) -> None:
    """All of the execution, top to bottom."""
    console.print(Rule(f"execution {trace.execution_id}"))
    console.print(_heading(trace))
    console.print(Rule("question", align="left"))
    console.print(plain(trace.question))
    console.print(Rule("script", align="left"))
    show_script(console, trace.script or trace.designer_text)
    for conversation in trace.conversations:
        _show_conversation(console, conversation)
    console.print(Rule("result", align="left"))
    console.print(_result(trace))
    if trace.reward_terms:
        console.print(_terms(trace))


def _heading(trace: training_pb2.ExecutionTrace) -> Table:
    table = _pairs()
    table.add_row("of", plain(f"{trace.run_id}, step {trace.step}"))
    table.add_row("task", plain(trace.task_id))
    table.add_row("design", plain(trace.design_id))
    table.add_row("pattern", plain(f"{trace.executed_pattern} (declared: {trace.declared_pattern or 'none'})"))
    return table


def _show_conversation(console: Console, conversation: training_pb2.TracedConversation) -> None:
    tokens = f"{conversation.inserted_tokens} tokens inserted, {conversation.generated_tokens} generated"
    title = f"{visible(conversation.agent)} · {visible(conversation.conversation_id)} · {tokens}"
    console.print(Rule(title, align="left"))
    for message in conversation.messages:
        console.print(message_line(message.role, message.content))


def _result(trace: training_pb2.ExecutionTrace) -> Table:
    table = _pairs()
    reason = f": {trace.reason}" if trace.reason else ""
    table.add_row("status", plain(trace.status + reason, "" if trace.status == "ok" else "red"))
    table.add_row("answer", plain(trace.answer))
    table.add_row("executor", _credited(trace.reward, trace, "executor_advantage"))
    table.add_row("designer", _credited(trace.designer_reward, trace, "designer_advantage"))
    if trace.flags:
        table.add_row("flags", plain(", ".join(trace.flags)))
    return table


def _credited(reward: float, trace: training_pb2.ExecutionTrace, advantage: str) -> str:
    if not trace.HasField(advantage):  # type: ignore[arg-type]
        return f"reward {reward:.3f}, no advantage (not part of a training step)"
    return f"reward {reward:.3f}, advantage {getattr(trace, advantage):+.3f}"


def _terms(trace: training_pb2.ExecutionTrace) -> Table:
    table = Table("role", "reward term", title="reward")
    for heading in ("value", "weight", "share"):
        table.add_column(heading, justify="right")
    for term in trace.reward_terms:
        role = common_pb2.Role.Name(term.role).removeprefix("ROLE_").lower()
        share = term.value * term.weight
        table.add_row(role, plain(term.name), f"{term.value:.3f}", f"{term.weight:.3f}", f"{share:+.3f}")
    return table


def _pairs() -> Table:
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column()
    return table
