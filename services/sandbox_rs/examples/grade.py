"""Grades solutions of a small problem: right, wrong, endless, and one that tries to reach the network.

python grade.py
"""

from troupe_sandbox import Limits, Sandbox

CASES = [("1 2\n", "3\n"), ("20 22\n", "42\n")]
SOLUTIONS = {
    "right": "print(sum(map(int, input().split())))",
    "wrong": "print(42)",
    "endless": "while True: pass",
    "curious": "import socket; socket.create_connection(('example.org', 80))",
}


def main() -> None:
    """Prints a line for each solution."""
    with Sandbox() as sandbox:
        print(f"profile: {sandbox.isolation().profile}")
        for name, solution in SOLUTIONS.items():
            report = sandbox.run_tests(solution, CASES, limits=Limits(cpu_seconds=0.5), stop_at_first_failure=True)
            worst = next((case for case in report.cases if case.verdict != "ok"), report.cases[0])
            detail = worst.detail.strip().splitlines() or [""]
            print(f"{name}: {worst.verdict} {detail[0]}")


if __name__ == "__main__":
    main()
