"""Messages that are wrong in every way that a message can be, and calls that take them."""
