"""From what happened to what it is worth: answer, provenance, grade, reward terms.

Nothing that a script printed is looked at. A result counts only if a recorded turn of the executor (or an attested tool run
that such a turn asked for) says the same; a grader that dies is a fault of ours, never a wrong answer.
"""
