"""The scripting library that designs import inside the sandbox."""
