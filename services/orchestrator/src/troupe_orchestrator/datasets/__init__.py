"""Problem files: bytes in, tasks and the errors of single lines out. Begin with `loading.load` and `task.Task`."""
