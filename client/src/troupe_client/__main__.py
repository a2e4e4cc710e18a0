"""`python -m troupe_client` is the `troupe` command."""

from troupe_client.cli import main

if __name__ == "__main__":
    main()
