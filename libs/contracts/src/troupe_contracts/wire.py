"""Limits that both ends of a connection must agree on.

gRPC's own defaults do not fit: messages above 4 MiB are refused, a dead peer is
noticed by nobody, and two processes may listen on one port without an error.
"""

from typing import Final, TypeAlias

MAX_MESSAGE_BYTES: Final = 64 * 2**20
# Trailers carry an error's text and its details; gRPC's limit of 16 KiB would replace both with a transport
# error.
MAX_METADATA_BYTES: Final = 64 * 2**10
MAX_CONCURRENT_STREAMS: Final = 4096
KEEPALIVE_SECONDS: Final = 20.0
KEEPALIVE_TIMEOUT_SECONDS: Final = 10.0

Option: TypeAlias = tuple[str, int | str]

_COMMON: Final[tuple[Option, ...]] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
    ("grpc.keepalive_time_ms", int(KEEPALIVE_SECONDS * 1000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT_SECONDS * 1000)),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

SERVER_OPTIONS: Final[tuple[Option, ...]] = (
    *_COMMON,
    ("grpc.max_concurrent_streams", MAX_CONCURRENT_STREAMS),
    # By default, from a burst of more than 1000 calls that the event loop has not taken up yet, gRPC cancels some at
    # random: 2000 at once lost 222. Overload is ours to refuse, with a delay (`errors.Exhausted`).
    ("grpc.server.max_pending_requests", 4 * MAX_CONCURRENT_STREAMS),
    ("grpc.server.max_pending_requests_hard_limit", 8 * MAX_CONCURRENT_STREAMS),
    # A client's keepalive is not an attack: accept twice as many pings as our own channels send.
    ("grpc.http2.min_ping_interval_without_data_ms", int(KEEPALIVE_SECONDS * 500)),
    # With port sharing, a second server on a taken port starts without an error and gets half of the calls.
    ("grpc.so_reuseport", 0),
)

CHANNEL_OPTIONS: Final[tuple[Option, ...]] = (
    *_COMMON,
    # Services call each other directly; an http_proxy variable is meant for the outside.
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # How long one attempt to connect may take: with little, a busy server is never reached.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 2000),
)
