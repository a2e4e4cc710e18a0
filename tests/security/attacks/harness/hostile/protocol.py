"""Attacks 39 and 81: a workflow script against the pipe to the supervisor."""

from .attack import Attack, Ends, Family, Form, Limits, Verdict

FRAMES = """
import json, struct, time

def send(body):
    text = body if type(body) is bytes else json.dumps(body).encode()
    whole = struct.pack("<I", len(text)) + text
    while whole:
        whole = whole[os.write(3, whole):]

def agent_call(number, conversation, *runs):
    send({"type": "agent_call", "call_id": number, "conversation_id": conversation, "agent": "a",
          "messages": [{"role": "user", "content": "x"}], "tool_run_ids": list(runs)})

def result(content):
    return {"type": "result", "content": content, "result_type": "final_result", "own_question": False}
"""


def protocol(name: str, ends: Ends, program: str, *off: str, number: int = 81, **more: object) -> Attack:
    forms = (Form.WORKFLOW,)
    return Attack(number, name, Family.PROTOCOL, FRAMES + program, ends, off, forms=forms, **more)  # type: ignore[arg-type]


HARMLESS = FRAMES + "send(result('42'))\ntime.sleep(1)\nsucceeded()\n"
CLOSED = "frames are of closed types: what is not one of four is refused by the decoder, and there is nothing beside it"

PROTOCOL = (
    protocol(
        "passing descriptors to the supervisor",
        Verdict.RUNTIME_ERROR,
        """
import array, socket
body = json.dumps(result("42")).encode()
frame = struct.pack("<I", len(body)) + body
descriptors = socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 20)
socket.socket(fileno=3).sendmsg([frame], [descriptors])
succeeded()
""",
        "seccomp:sendmsg",
        number=39,
    ),
    protocol(
        "flood of calls",
        Verdict.POLICY_VIOLATION,
        "for number in range(1, 80): agent_call(number, f'c{number}')\ntime.sleep(1)\nsucceeded()\n",
        "supervisor:calls_in_flight",
        answered=False,
    ),
    protocol(
        "answers that it never reads",
        Verdict.POLICY_VIOLATION,
        "for number in range(1, 4000): agent_call(number, f'c{number}')\ntime.sleep(1)\nsucceeded()\n",
        "supervisor:unread_answers",
        max_agent_calls=1,
    ),
    protocol(
        "giant frame",
        Verdict.POLICY_VIOLATION,
        "send(result('x' * (2 << 20)))\ntime.sleep(1)\nsucceeded()\n",
        "supervisor:frame_size",
    ),
    protocol(
        "length of a frame that never comes",
        Verdict.POLICY_VIOLATION,
        "os.write(3, struct.pack('<I', 0xffffffff))\ntime.sleep(1)\nsucceeded()\n",
        no_control="with the cap off the supervisor would set 4 GiB aside on a machine that others use; see giant frame",
        harmless=HARMLESS,
    ),
    protocol(
        "malformed frame",
        Verdict.POLICY_VIOLATION,
        "send(b'\\xff\\xfe{')\ntime.sleep(1)\nsucceeded()\n",
        no_control=CLOSED,
        harmless=HARMLESS,
    ),
    protocol(
        "reward in a result",
        Verdict.POLICY_VIOLATION,
        "send(result('42') | {'reward': 1.0})\ntime.sleep(1)\nsucceeded()\n",
        no_control=CLOSED,
        harmless=HARMLESS,
    ),
    protocol(
        "method that was never granted",
        Verdict.POLICY_VIOLATION,
        "send({'type': 'run_workflow', 'script': '1'})\ntime.sleep(1)\nsucceeded()\n",
        no_control=CLOSED,
        harmless=HARMLESS,
    ),
    protocol(
        "reply forged to itself",
        Verdict.POLICY_VIOLATION,
        "send({'type': 'agent_reply', 'call_id': 1, 'text': '42'})\ntime.sleep(1)\nsucceeded()\n",
        no_control=CLOSED,
        harmless=HARMLESS,
    ),
    protocol(
        "call numbers out of order",
        Verdict.POLICY_VIOLATION,
        "agent_call(7, 'c')\ntime.sleep(1)\nsucceeded()\n",
        "supervisor:call_ids",
    ),
    protocol(
        "two calls at once in one conversation",
        Verdict.POLICY_VIOLATION,
        "agent_call(1, 'c')\nagent_call(2, 'c')\ntime.sleep(1)\nsucceeded()\n",
        "supervisor:conversations",
        answered=False,
    ),
    protocol(
        "tool run of somebody else",
        Verdict.POLICY_VIOLATION,
        "agent_call(1, 'c', 1)\ntime.sleep(1)\nsucceeded()\n",
        "supervisor:attested",
    ),
    protocol(
        "agents without end",
        Verdict.OK,
        "for number in range(1, 7): agent_call(number, f'c{number}')\ntime.sleep(0.5)\n",
        "supervisor:call_budget",
        max_agent_calls=3,
        success=lambda seen: seen.agent_calls > 3,
    ),
    protocol(
        "waiting for ever",
        Verdict.WALL_LIMIT,
        "agent_call(1, 'c')\ntime.sleep(1.5)\nsucceeded()\n",
        "supervisor:wall",
        answered=False,
        limits=Limits(wall_seconds=0.6),
    ),
    protocol(
        "spinning while it waits",
        Verdict.CPU_LIMIT,
        "agent_call(1, 'c')\nwhile time.process_time() < 1: pass\nsucceeded()\n",
        "supervisor:cpu",
        answered=False,
        limits=Limits(cpu_seconds=0.3),
    ),
    protocol(
        "spending in tools",
        Verdict.CPU_LIMIT,
        """
from workflow.tools import run_python
for _ in range(4):
    run_python("import time\\nwhile time.process_time() < 0.3: pass", None)
succeeded()
""",
        "supervisor:cpu",
        limits=Limits(cpu_seconds=0.5),
    ),
)
