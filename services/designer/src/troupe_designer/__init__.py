"""The designer: turns a task into workflow scripts, sampled from its policy.

- `prompt`      the messages that ask for a design
- `extraction`  the script, and the pattern it declares, in the text of a reply
- `validation`  why a script cannot be run
- `proposals`   many designs at once, each told as it finishes
- `service`     the gRPC services `Designer` and `Policy`
"""
