"""Grader `interval`: the reference is "low..high", and a number within it is right."""


def in_interval(question: str, reference: tuple[str, ...], answer: str) -> bool:
    low, high = (float(bound) for bound in reference[0].split(".."))
    try:
        return low <= float(answer) <= high
    except ValueError:  # no number is a wrong answer; whatever a grader raises is a fault and not a grade
        return False
