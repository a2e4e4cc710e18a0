"""`troupe solve` on the terminal: the design's script, each agent's turns as they come, the answer."""

from rich.console import Console
from rich.rule import Rule
from rich.syntax import Syntax
from rich.text import Text
from troupe.v1 import common_pb2, designer_pb2, sandbox_pb2, solver_pb2

from troupe_client.render_text import plain, visible


def show(console: Console, event: solver_pb2.SolveEvent) -> None:
    """One event of the stream."""
    match event.WhichOneof("event"):
        case "design":
            show_design(console, event.design)
        case "turn":
            _show_turn(console, event.turn)
        case "tool_run":
            _show_tool_run(console, event.tool_run)
        case "answer":
            _show_answer(console, event.answer)
        case _:
            pass  # entering and leaving nodes shows in the turns; an event of a later version is not ours to show


def show_design(console: Console, design: designer_pb2.Design) -> None:
    """The script, or why there is none."""
    console.print(Rule("design" + (f" ({visible(design.declared_pattern)})" if design.declared_pattern else "")))
    show_script(console, design.script or design.text)
    for problem in design.problems:
        line = f" in line {problem.line}" if problem.line else ""
        console.print(plain(f"cannot be run: {problem.message}{line}", "red"))


def show_script(console: Console, script: str) -> None:
    """Python source with its colours."""
    console.print(Syntax(visible(script), "python", theme="ansi_dark", background_color="default", word_wrap=True))


def message_line(role: "common_pb2.MessageRole.ValueType", content: str) -> Text:
    """One message of a conversation."""
    name = common_pb2.MessageRole.Name(role).removeprefix("MESSAGE_ROLE_").lower()
    return Text.assemble((f"{name}: ", "bold"), plain(content))


def _show_turn(console: Console, turn: solver_pb2.AgentTurn) -> None:
    console.print(Rule(f"{visible(turn.agent)} ({turn.generated_tokens} tokens)", align="left"))
    for message in turn.messages:
        line = message_line(message.role, message.content)
        line.stylize("dim")
        console.print(line)
    console.print(plain(turn.reply))


def _show_tool_run(console: Console, tool_run: sandbox_pb2.ToolRun) -> None:
    console.print(Rule("python", align="left", style="yellow"))
    show_script(console, tool_run.code)
    console.print(plain(tool_run.output.rstrip("\n"), "yellow"))


def _show_answer(console: Console, answer: solver_pb2.SolveAnswer) -> None:
    if answer.status == "ok":
        console.print(Rule("answer", style="green"))
        console.print(plain(answer.answer, "bold green"))
    else:
        console.print(Rule(f"no answer ({visible(answer.status)})", style="red"))
        console.print(plain(answer.reason, "red"))
