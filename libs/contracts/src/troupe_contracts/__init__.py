"""Generated gRPC stubs of Troupe, and the server and channel factories that every service uses."""
