"""The task families, one file each. A family enumerates its canonical operands and makes a task of each."""
