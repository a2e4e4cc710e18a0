"""The starter profile: a generated task suite and a small policy that learns on two cores."""
