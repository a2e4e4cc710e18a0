"""Services behind their guards, and everyone who may try to call them."""
