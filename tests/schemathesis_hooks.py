"""Each connection comes from a loopback address of its own: the server limits wrong tokens by address (429), and the
checks that leave the token out want to see 401."""

import itertools

from urllib3.util import connection

count = itertools.count()
connect = connection.create_connection


def from_another_address(address, timeout=None, source_address=None, socket_options=None):
    n = next(count) % 60_000
    return connect(address, timeout, (f"127.1.{n // 250}.{n % 250 + 1}", 0), socket_options)


connection.create_connection = from_another_address
