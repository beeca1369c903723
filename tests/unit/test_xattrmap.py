"""The xattrmap language: what virtiofsd's rules say, what is refused, and that no name escapes its map."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passthrough.fs.xattrmap import PRESETS, Kind, Mapped, XattrMap, parse_map

_BAD, _UNSUPPORTED = Mapped(Kind.BAD, b""), Mapped(Kind.UNSUPPORTED, b"")
_HIDE_TRUSTED = "/prefix/all/trusted./user.virtiofs./ /bad/server//trusted./ /bad/client/user.virtiofs.// /ok/all///"


@pytest.mark.parametrize(
    ("text", "name", "host"),
    [
        (":prefix:all::user.virtiofs.::bad:all:::", b"security.x", b"user.virtiofs.security.x"),
        (_HIDE_TRUSTED, b"trusted.x", b"user.virtiofs.trusted.x"),
        (_HIDE_TRUSTED, b"user.x", b"user.x"),
        (":map::user.virtiofs.:", b"security.capability", b"user.virtiofs.security.capability"),
        (":map:security.:trusted.virtiofs.:", b"security.x", b"trusted.virtiofs.security.x"),
        (":map:security.:trusted.virtiofs.:", b"user.x", b"user.x"),
        ("selinux", b"security.selinux", b"trusted.virtiofs.security.selinux"),
        ("selinux", b"security.capability", b"security.capability"),
        ("overlay", b"trusted.overlay.opaque", b"user.virtiofs.trusted.overlay.opaque"),
        ("overlay", b"trusted.other", b"trusted.other"),
    ],
)
def test_names_that_go_through(text: str, name: bytes, host: bytes) -> None:
    found = parse_map(text)
    assert found.to_host(name).name == host
    assert found.to_guest(host) == name
    assert found.renamed(name) == (host if host != name else None)
    assert found.unchanged(name) is (host == name)


@pytest.mark.parametrize(
    ("text", "name", "verdict"),
    [
        (":prefix:all::user.virtiofs.::bad:all:::", b"user.virtiofs.security.x", None),
        (_HIDE_TRUSTED, b"user.virtiofs.trusted.x", _BAD),
        (":map:security.:trusted.virtiofs.:", b"trusted.virtiofs.security.x", _BAD),
        (":unsupported:all:security.:security.::ok:all:::", b"security.x", _UNSUPPORTED),
        (":bad:client:user.::!ok!all!!!", b"user.x", _BAD),
        ("overlay", b"user.virtiofs.trusted.overlay.opaque", _BAD),
    ],
)
def test_names_that_a_guest_cannot_ask_for(text: str, name: bytes, verdict: Mapped | None) -> None:
    found = parse_map(text)
    host = found.to_host(name)
    assert host == verdict if verdict else host.name == b"user.virtiofs." + name


@pytest.mark.parametrize(
    ("text", "host"),
    [
        (_HIDE_TRUSTED, b"trusted.x"),
        (_HIDE_TRUSTED, b"user.virtiofs.other"),  # would be listed as "other", which leads elsewhere
        (":map::user.virtiofs.:", b"security.capability"),
        (":map::user.virtiofs.:", b"user.x"),
        (":map::user.virtiofs.:", b"user.virtiofs."),  # a name without a name
        (":map:security.:trusted.virtiofs.:", b"security.x"),
        (":unsupported:all:security.:security.::ok:all:::", b"security.x"),
        (":bad:client:user.:::ok:all:::", b"user.x"),
        ("selinux", b"security.selinux"),
        ("overlay", b"trusted.overlay.opaque"),
    ],
)
def test_names_of_the_host_that_are_hidden(text: str, host: bytes) -> None:
    assert parse_map(text).to_guest(host) is None


def test_the_first_rule_that_matches_decides() -> None:
    found = parse_map(":ok:all:user.a:user.a::bad:all:user.:user.::unsupported:all:::")
    assert [found.to_host(name) for name in (b"user.ab", b"user.b", b"x")] == [
        Mapped(Kind.OK, b"user.ab"),
        _BAD,
        _UNSUPPORTED,
    ]


def test_the_short_form_is_four_rules_or_two() -> None:
    long = parse_map(":prefix:all:k:p::bad:server::k::bad:client:p:::ok:all:::").rules
    assert [rule[:5] for rule in parse_map("+map+k+p+").rules] == [rule[:5] for rule in long]
    long = parse_map(":prefix:all::p::bad:all:::").rules
    assert [rule[:5] for rule in parse_map(":map::p:").rules] == [rule[:5] for rule in long]


def test_rules_choose_their_separators_and_blanks_between_them_do_not_count() -> None:
    tight = parse_map(":prefix:all:a:b::bad:all:::")
    for text in ("  :prefix:all:a:b:\n\t/bad/all///  ", "XprefixXallXaXbX ébadéallééé"):
        assert [rule[:5] for rule in parse_map(text).rules] == [rule[:5] for rule in tight.rules]
    assert parse_map("/ok/all/user.a:b//,ok,all,,,").to_host(b"user.a:b").kind is Kind.OK


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ":type:scope:key:prepend:"),
        ("   ", ":type:scope:key:prepend:"),
        ("overlays", "not complete: overlays"),
        (":", "not complete: :"),
        (":bad:all::", "not complete: :bad:all::"),
        (":map:a:", "not complete: :map:a:"),
        (":ok:all::: /bad/all//", "not complete: /bad/all//"),
        (":good:all:::", "not :good:all:::"),
        (":ok:all:::  :Bad:all:::", "not :Bad:all:::"),
        (":ok:server side:::", "not :ok:server side:::"),
        (":ok:::: ", "not :ok::::"),
        (":prefix:all:trusted.:user.virtiofs.:", ":prefix:all:trusted.:user.virtiofs.: is not for all"),
        (":ok:client:::", "the host may list, such as :bad:all:::; :ok:client::: is not"),
        (":ok:server:::", "a guest may send, such as :bad:all:::; :ok:server::: is not"),
        (":ok:all:user.:::bad:all:security.::", "a guest may send, such as :bad:all:::; :bad:all:security.:: is not"),
        (":ok:all::: :map::user.virtiofs.:", ":map::user.virtiofs.: follows others"),
        (":map::user.virtiofs.::ok:all:::", ":ok:all::: follows it"),
    ],
)
def test_what_is_no_map_is_refused_and_the_rule_named(text: str, names: str) -> None:
    with pytest.raises(ValueError, match=re.escape(names)) as error:
        parse_map(text)
    assert "\n" not in str(error.value)


# Whatever the rules are

_parts = st.sampled_from(["", "u.", "u.v.", "s.", "s.cap", "t.", "x"])
_rules = st.builds(
    lambda kind, scope, key, prepend: f":{kind}:{scope}:{key}:{prepend}:",
    st.sampled_from([kind.value for kind in Kind]),
    st.sampled_from(["client", "server", "all"]),
    _parts,
    _parts,
)
_ends = st.sampled_from([":bad:all:::", ":ok:all:::", ":unsupported:all:::"])
_long = st.builds(lambda rules, end: " ".join([*rules, end]), st.lists(_rules, max_size=5), _ends)
_short = st.builds(lambda key, prepend: f"/map/{key}/{prepend}/", _parts, _parts)
_maps = st.one_of(_long, _short, st.sampled_from(sorted(PRESETS))).map(parse_map)
_names = st.one_of(
    st.lists(_parts, min_size=1, max_size=4).map(lambda parts: "".join(parts).encode()),
    st.sampled_from([b"security.selinux", b"trusted.virtiofs.security.selinux", b"user.virtiofs.trusted.overlay.x"]),
).filter(bool)


@given(_maps, _names)
def test_a_guest_sees_nothing_that_it_could_not_ask_for(found: XattrMap, host: bytes) -> None:
    name = found.to_guest(host)
    if name is not None:
        assert found.to_host(name).name == host


@given(_maps, _names)
def test_a_guest_reaches_the_name_that_its_rule_makes_or_none(found: XattrMap, name: bytes) -> None:
    rule = next(rule for rule in found.rules if rule.client and name.startswith(rule.key))
    host = found.to_host(name)
    expected = {Kind.OK: name, Kind.PREFIX: rule.prepend + name}.get(rule.kind, b"")
    assert host == (rule.kind, expected)


@given(_parts, _parts.filter(bool), _names)
def test_the_short_form_keeps_guests_within_their_names(key: str, prepend: str, name: bytes) -> None:
    """What stands on the host under the raw key, or anywhere below the prefix but where the key was put, is out of
    reach: neither read, nor written, nor seen."""
    found, k, p = parse_map(f":map:{key}:{prepend}:"), key.encode(), prepend.encode()
    host = found.to_host(name).name
    seen = found.to_guest(name)
    if host and host.startswith(p) and not name.startswith(k):
        raise AssertionError("a name of the guest's own choice below the prefix")
    if host and name.startswith(k):
        assert host == p + name
    if seen is not None and name.startswith(p):
        assert seen.startswith(k)


@given(st.text(max_size=60))
def test_any_text_is_a_map_or_a_sentence(text: str) -> None:
    try:
        found = parse_map(text)
    except ValueError:
        return
    assert found.to_host(b"user.x").kind in Kind


@given(st.lists(st.sampled_from([":", "/", "map", "ok", "all", "prefix", "bad", "a.", " "]), max_size=30).map("".join))
def test_any_mixture_of_words_is_a_map_or_a_sentence(text: str) -> None:
    try:
        found = parse_map(text)
    except ValueError:
        return
    found.to_guest(b"a.x")
