"""Reads that end by a deadline, whatever the peer sends."""

import io
import socket

import pytest

from commonweal_protocols.base.socket_deadline import DeadlineReader


def test_what_is_there_in_time_is_read() -> None:
    left, right = socket.socketpair()
    with left, right:
        right.sendall(b"one line\nanother")
        right.shutdown(socket.SHUT_WR)
        assert io.BufferedReader(DeadlineReader(left, 20)).read() == b"one line\nanother"


def test_silence_ends_with_the_deadline() -> None:
    left, right = socket.socketpair()
    with left, right, pytest.raises(TimeoutError):
        DeadlineReader(left, 0.01).read(1)


def test_after_the_deadline_nothing_is_read_though_bytes_are_there() -> None:
    left, right = socket.socketpair()
    with left, right:
        right.sendall(b"late")
        reader = DeadlineReader(left, 0)
        with pytest.raises(TimeoutError, match="timed out"):
            reader.read(1)
        reader.start(20)
        assert reader.read(4) == b"late"
