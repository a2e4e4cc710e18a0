"""What every parameter of every command can be wrong in, and what is to be said then."""
