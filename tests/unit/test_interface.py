"""Which interface leads to another host."""

from __future__ import annotations

from fourminutes.comm.interface import interface_towards, interfaces


def test_the_loopback_leads_to_this_host() -> None:
    assert "lo" in interfaces()
    assert interface_towards("127.0.0.1") == "lo"


def test_where_it_cannot_be_told_nothing_is_said() -> None:
    assert interface_towards(None) == ""
    assert interface_towards("no-such-host.invalid") == ""
