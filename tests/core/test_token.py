"""Join tokens and addresses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmoe.core.errors import ConfigError
from meshmoe.core.token import Contact, JoinToken, Ticket, decode_token, parse_address, parse_peer


@given(
    st.lists(st.tuples(st.text("abc.-1", min_size=1, max_size=40), st.integers(1, 65535)), min_size=1, max_size=16),
    st.binary(min_size=32, max_size=32),
    st.builds(Ticket, st.binary(min_size=8, max_size=8), st.integers(0, 1 << 39), st.binary(min_size=16, max_size=16)),
)
def test_tokens_read_back(addresses, key, ticket):
    token = JoinToken(addresses, key, ticket)
    assert decode_token(token.encode()) == token
    assert parse_peer(token.encode()) == Contact(tuple(addresses), key, ticket)


@given(st.text(max_size=60))
def test_other_text_is_refused_with_one_line(text):
    with pytest.raises(ConfigError) as caught:
        decode_token("mm1-" + text)
    assert "\n" not in str(caught.value)
    assert len(text) < 9 or text[5:] not in str(caught.value), "it may be a real token, cut short"


@pytest.mark.parametrize(
    ("text", "address"),
    [("192.168.1.20:9700", ("192.168.1.20", 9700)), ("[::1]:1", ("::1", 1)), ("box.lan:80", ("box.lan", 80))],
)
def test_addresses(text, address):
    assert parse_peer(text) == Contact((address,))


@pytest.mark.parametrize("text", ["", "box", "box:", ":9700", "::1:9700", "box:port", "a b:1", "box:0", "box:65536"])
def test_bad_addresses(text):
    with pytest.raises(ConfigError, match="--peer"):
        parse_peer(text)


def test_port_zero_where_it_makes_sense():
    assert parse_address("127.0.0.1:0", "--listen", port_min=0) == ("127.0.0.1", 0)
