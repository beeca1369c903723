"""Mount options: both forms of each row, the last one wins, what is refused, what is passed over."""

from dataclasses import fields

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from passthrough import exitcodes, export_options
from passthrough.cli import parser
from passthrough.errors import UserError
from passthrough.fs.owners.idmap import Kind, Line
from passthrough.fs.tree.config import NS_PER_S, Cache, Choice, FileHandles, ReaddirPlus
from passthrough.fs.xattrmap import parse_map
from passthrough.option_rows import Option, Setting, split_words
from passthrough.options import OPTIONS, MountOptions, collect
from passthrough.owner_options import SecurityModel, Squash
from passthrough.process_options import Level
from passthrough.sandbox_options import SandboxMode, SeccompMode
from passthrough.share_options import Writeout
from passthrough.transport.mounting import MOUNT_FLAGS
from passthrough.transport_options import Transport

_WORDS = [option.word for option in OPTIONS]
_FLAGS = [option for option in OPTIONS if option.parse is None]
_VALUED = [option for option in OPTIONS if option.parse is not None]

_VALUES: dict[str, tuple[tuple[str, object], ...]] = {
    "fsname": (("a=b", "a=b"), ("/srv/data", "/srv/data")),
    "subtype": (("a-b_1", "a-b_1"),),
    "max_read": (("4096", 4096), ("128K", 131072), ("16m", 16 << 20)),
    "max_write": (("4k", 4096), ("1M", 1 << 20)),
    "cache": tuple((mode.value, mode) for mode in Cache),
    "xattrmap": (("selinux", parse_map("selinux")), ("/ok/all///", parse_map("/ok/all///"))),
    "writeout": tuple((when.value, when) for when in Writeout),
    "timeout": (("0", 0), ("0.5", NS_PER_S // 2), ("86400", 86400 * NS_PER_S), ("0.000000001", 1)),
    "attr_timeout": (("1", NS_PER_S), ("1e3", 1000 * NS_PER_S)),
    "entry_timeout": (("2.25", NS_PER_S * 9 // 4),),
    "negative_timeout": (("1000000000", 10**18),),
    "readdirplus": tuple((when.value, when) for when in ReaddirPlus),
    "inode_file_handles": (*((when.value, when) for when in FileHandles), ("fallback", FileHandles.PREFER)),
    "passthrough": tuple((when.value, when) for when in Choice),
    "io_uring": tuple((when.value, when) for when in Choice),
    "transport": tuple((door.value, door) for door in Transport),
    "threads": (("1", 1), ("256", 256)),
    "log_level": tuple((level.value, level) for level in Level),
    "sandbox": tuple((mode.value, mode) for mode in SandboxMode),
    "landlock": tuple((when.value, when) for when in Choice),
    "seccomp": tuple((mode.value, mode) for mode in SeccompMode),
    "modcaps": (("+sys_admin:-MKNOD", "+sys_admin:-MKNOD"),),
    "rlimit_nofile": (("0", 0), ("1000000", 1_000_000)),
    "uid_map": ((":1000:1000:1:", (":1000:1000:1:",)),),
    "gid_map": (("/0/1000/1/", ("/0/1000/1/",)),),
    "security_model": tuple((model.value, model) for model in SecurityModel),
    "translate_uid": (("map:0:100000:65536", (Line(Kind.MAP, 0, 100_000, 65_536),)),),
    "translate_gid": (("forbid-guest:1:2", (Line(Kind.FORBID_GUEST, 1, 0, 2),)),),
    "squash": tuple((who.value, who) for who in Squash),
    "anon_uid": (("1", 1), ("4294967294", 4_294_967_294)),
    "anon_gid": (("99", 99),),
}
_BAD: dict[str, tuple[str, ...]] = {
    "fsname": ("", "a\nb"),
    "subtype": ("", "a.b", "a,b", "a b", "ä"),
    "max_read": ("", "4095", "17M", "1G", "-4096", "x", "4096 ", "0x1000", "9" * 5000),
    "max_write": ("", "0", "1k"),
    "cache": ("", "Auto", "nothing"),
    "xattrmap": ("", "SELinux", ":ok:server:::", ":map:a:b::ok:all:::"),
    "writeout": ("", "Immediate", "0"),
    "timeout": ("", "-1", "x", "nan", "sNaN", "inf", "1000000001", "1e99", "1s"),
    "attr_timeout": ("-0.5", "NaN"),
    "entry_timeout": ("Infinity",),
    "negative_timeout": ("1,5",),
    "readdirplus": ("yes", ""),
    "inode_file_handles": ("", "always", "Prefer"),
    "passthrough": ("yes", "", "On"),
    "io_uring": ("yes", "", "1"),
    "transport": ("fuse", "", "Llfuse"),
    "threads": ("0", "257", "-1", "1.0", "two", ""),
    "log_level": ("", "err", "INFO", "7"),
    "sandbox": ("", "yes", "Namespace"),
    "landlock": ("", "yes"),
    "seccomp": ("", "trap", "Kill"),
    "modcaps": ("", "mknod", "+", "+a:", "+a,-b", "*a"),
    "rlimit_nofile": ("", "-1", "1k", "9" * 5000, "1.5", "²"),
    "uid_map": ("", ":", ":1:1:", ":a:1:1:", "1000", ":1:1:1:1:"),
    "gid_map": (":-1:0:1:", ":0:0:99999999999:"),
    "security_model": ("", "mapped-file", "Passthrough"),
    "translate_uid": ("", "map", "map:1:2", "forbid-guest:1:2:3", "guest:0:0:0", "all:0:0:1"),
    "translate_gid": ("host:1:1:4294967295", "map:-1:0:1", "squash-host:²:1:1"),
    "squash": ("", "yes", "Root"),
    "anon_uid": ("", "0", "-1", "4294967295", "nobody", "9" * 5000),
    "anon_gid": ("1.0", "²"),
}


def with_dash_o(text: str) -> MountOptions:
    """The options that `-o text` gives."""
    return collect(parser.build().parse_args(["mount", "-o", text, "S", "M"]).settings)


def with_long(*words: str) -> MountOptions:
    """The options that these long options give."""
    return collect(parser.build().parse_args(["mount", *words, "S", "M"]).settings)


def refused(*settings: Setting, sloppy: bool = False) -> str:
    """The line for options that must not be taken."""
    with pytest.raises(UserError) as caught:
        collect(settings, sloppy=sloppy)
    assert caught.value.status == exitcodes.USAGE
    return str(caught.value)


def test_the_rows_and_the_fields_fit() -> None:
    assert {option.field for option in OPTIONS} == {field.name for field in fields(MountOptions)}
    assert len(set(_WORDS)) == len(_WORDS)
    assert set(_VALUES) == set(_BAD) == {option.word for option in _VALUED}


def test_nothing_said_is_the_defaults() -> None:
    assert collect([]) == MountOptions() == with_dash_o("") == with_long()


@pytest.mark.parametrize("option", _FLAGS, ids=lambda option: option.word)
def test_a_flag_means_the_same_in_each_form(option: Option) -> None:
    found = with_dash_o(option.word)
    assert getattr(found, option.field) is option.value
    for long in {"--" + option.word, "--" + option.word.replace("_", "-")}:
        assert with_long(long) == found
    others = {field.name for field in fields(found)} - {option.field}
    assert all(getattr(found, name) == getattr(MountOptions(), name) for name in others)


@pytest.mark.parametrize(("word", "text", "value"), [(w, *row) for w, rows in _VALUES.items() for row in rows])
def test_a_value_means_the_same_in_each_form(word: str, text: str, value: object) -> None:
    beside = ["--squash=root"] if word.startswith("anon_") else []
    found = with_dash_o(",".join([f"{word}={text}", *(words[2:] for words in beside)]))
    field = next(option.field for option in OPTIONS if option.word == word)
    assert getattr(found, field) == value
    hyphened = "--" + word.replace("_", "-")
    for long in ([f"--{word}={text}"], [f"{hyphened}={text}"], [hyphened, text]):
        assert with_long(*long, *beside) == found


@pytest.mark.parametrize(("word", "text"), [(word, text) for word, texts in _BAD.items() for text in texts])
def test_a_bad_value_is_refused_with_its_option_named(word: str, text: str) -> None:
    line = refused((word, text))
    assert line.startswith(f"option {word}={text}: it takes ")


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.word)
def test_a_value_where_none_belongs_and_none_where_one_belongs(option: Option) -> None:
    if option.parse is None:
        assert refused((option.word, "1")) == f"option {option.word} takes no value"
    else:
        assert refused((option.word, None)) == (f"option {option.word} needs a value: {option.word}={option.metavar}")


@pytest.mark.parametrize(("word", "text"), [("ro", ""), ("debug", "no"), ("allow_other", "true")])
def test_a_flag_with_an_equals_sign_is_refused_in_each_form(word: str, text: str) -> None:
    with pytest.raises(UserError):
        with_dash_o(f"{word}={text}")
    with pytest.raises(UserError):
        with_long(f"--{word}={text}")


_OPPOSITES = [(a, b) for a in _FLAGS for b in _FLAGS if a.field == b.field and a.value is True and b.value is False]


def test_the_opposites_are_those_of_mount_and_no_() -> None:
    assert {(a.word, b.word) for a, b in _OPPOSITES} == {
        ("ro", "rw"),
        ("suid", "nosuid"),
        ("dev", "nodev"),
        ("exec", "noexec"),
        ("atime", "noatime"),
        ("sync", "async"),
        ("default_permissions", "no_default_permissions"),
        ("writeback", "no_writeback"),
        ("xattr", "no_xattr"),
        ("posix_acl", "no_posix_acl"),
        ("flock", "no_flock"),
        ("posix_lock", "no_posix_lock"),
        ("allow_direct_io", "no_allow_direct_io"),
        ("allow_mmap", "no_allow_mmap"),
        ("preserve_noatime", "no_preserve_noatime"),
        ("killpriv_v2", "no_killpriv_v2"),
        ("allow_idmap", "no_allow_idmap"),
        ("readonly", "rw"),
        ("security_label", "no_security_label"),
    }


@pytest.mark.parametrize(("on", "off"), _OPPOSITES, ids=lambda option: option.word)
def test_of_two_opposites_the_last_wins(on: Option, off: Option) -> None:
    assert getattr(with_dash_o(f"{on.word},{off.word}"), on.field) is False
    assert getattr(with_dash_o(f"{off.word},{on.word}"), on.field) is True


def test_the_last_wins_across_forms() -> None:
    words = ["mount", "--timeout=1", "-o", "timeout=2,ro", "--timeout", "3", "S", "M", "-o", "rw"]
    found = collect(parser.build().parse_args(words).settings)
    assert (found.timeout, found.ro) == (3 * NS_PER_S, False)


def test_a_special_timeout_goes_before_the_common_one_wherever_it_stands() -> None:
    for text in ("timeout=5,attr_timeout=1", "attr_timeout=1,timeout=5"):
        tree = with_dash_o(text).tree()
        assert (tree.entry_timeout_ns, tree.attr_timeout_ns) == (5 * NS_PER_S, NS_PER_S)
    assert with_dash_o("").tree().attr_timeout_ns is None


_MOUNT_WORDS = "defaults auto noauto user nouser users nousers owner group nofail _netdev relatime lazytime silent loud"


@pytest.mark.parametrize("word", [*_MOUNT_WORDS.split(), "x-systemd.automount", "X-mount.mkdir", "comment=a=b"])
def test_words_of_mount_and_fstab_have_no_effect(word: str) -> None:
    assert split_words(word) == []
    assert with_dash_o(f"ro,{word},debug") == MountOptions(ro=True, debug=True)


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("", []),
        (",,", []),
        ("ro", [("ro", None)]),
        ("ro,,rw,", [("ro", None), ("rw", None)]),
        ("fsname=", [("fsname", "")]),
        ("fsname=a=b", [("fsname", "a=b")]),
        (r"fsname=a\,b,ro", [("fsname", "a,b"), ("ro", None)]),
        (r"fsname=a\\,ro", [("fsname", "a\\"), ("ro", None)]),
        (r"fsname=a\\\,ro", [("fsname", "a\\,ro")]),
        (r"fsname=a\b", [("fsname", r"a\b")]),
        ("fsname=a\\", [("fsname", "a\\")]),
        ("=x", [("", "x")]),
    ],
)
def test_split_words(text: str, settings: list[Setting]) -> None:
    assert split_words(text) == settings


@pytest.mark.parametrize("word", ["", "cach", "readwrite", "--ro", "allow-other", "remount", "RO"])
def test_an_unknown_word_is_refused_unless_sloppy(word: str) -> None:
    assert refused((word, None)).startswith(f"unknown option: {word}")
    assert collect([("ro", None), (word, None), (word, "x")], sloppy=True) == MountOptions(ro=True)


def test_sloppy_forgives_unknown_words_alone() -> None:
    assert "threads" in refused(("threads", "0"), sloppy=True)
    assert "exclude" in refused(("allow_other", None), ("allow_root", None), sloppy=True)


@pytest.mark.parametrize(
    "text",
    [
        "allow_other,allow_root",
        "writeback,cache=never",
        "cache=metadata,writeback",
        "posix_acl,no_xattr",
        "no_default_permissions,posix_acl",
        "xattrmap=overlay,no_xattr",
        "security_label,no_xattr",
        "posix_acl,xattrmap=:map::user.x.:",
        "posix_acl,xattrmap=:bad:all:::",
        "posix_acl,xattrmap=:bad:server::system.:/ok/all///",
        "passthrough=on,xattrmap=:map:security.:user.:",
        "passthrough=on,writeout=immediate",
        "transport=llfuse,cache=never",
        "transport=llfuse,cache=metadata",
        "transport=llfuse,writeback",
        "transport=llfuse,passthrough=on",
        "transport=llfuse,io_uring=on",
        "transport=llfuse,readdirplus=auto",
        "transport=llfuse,posix_acl",
        "transport=llfuse,security_label",
        "transport=llfuse,flock",
        "transport=llfuse,posix_lock",
    ],
)
def test_contradictions_are_refused_in_either_order(text: str) -> None:
    settings = split_words(text)
    assert refused(*settings) == refused(*reversed(settings))


@pytest.mark.parametrize(
    "text",
    [
        "no_xattr",
        "no_default_permissions",
        "no_xattr,no_posix_acl",
        "writeback,cache=always",
        "writeback,cache=never,cache=auto",
        "writeback,no_writeback,cache=never",
        "posix_acl,no_posix_acl,no_xattr",
        "posix_acl,xattrmap=selinux,passthrough=on",
        "posix_acl,xattrmap=:ok:all:system.posix_acl_:system.posix_acl_:/prefix/all//user.x./:bad:all:::",
        "security_label,no_security_label,no_xattr",
        "passthrough=on,writeout=immediate,writeout=later",
        "transport=llfuse,cache=always,no_readdirplus,no_flock,passthrough=auto,io_uring=off",
        "transport=llfuse,writeback,no_writeback",
        "transport=auto,writeback",
        "transport=devfuse,io_uring=on",
    ],
)
def test_what_does_not_contradict_is_taken(text: str) -> None:
    assert with_dash_o(text) != MountOptions()


@pytest.mark.parametrize("word", ["passthrough", "io_uring"])
def test_what_llfuse_cannot_do_for_an_export(word: str) -> None:
    settings = split_words(f"transport=llfuse,{word}=on")
    with pytest.raises(UserError, match=f"transport=llfuse: {word}=on cannot be had with llfuse") as raised:
        export_options.collect(settings)
    assert raised.value.status == exitcodes.USAGE
    assert export_options.collect(settings[:1]).transport is Transport.LLFUSE


def test_no_access_lists_without_what_they_need() -> None:
    assert with_dash_o("").tree().resolved().posix_acl
    for text in ("no_xattr", "no_default_permissions", "no_posix_acl"):
        assert not with_dash_o(text).tree().resolved().posix_acl


def test_the_flags_of_the_mount() -> None:
    assert with_dash_o("").mount_flags() == {"nosuid", "nodev"}
    assert with_dash_o("suid,dev").mount_flags() == frozenset()
    everything = with_dash_o("ro,nosuid,nodev,noexec,noatime,sync").mount_flags()
    assert everything == {"ro", "nosuid", "nodev", "noexec", "noatime", "sync"}
    assert everything <= set(MOUNT_FLAGS)


def test_the_helper_of_mount() -> None:
    parsed, sloppy, fake = parser.mount_helper(["S", "M", "-sn", "-o", "rw,noexec,x-a", "-t", "fuse.passthrough"])
    assert (parsed.source, parsed.mountpoint, sloppy, fake) == ("S", "M", True, False)
    assert collect(parsed.settings) == MountOptions(exec=False)
    assert parser.mount_helper(["S", "M", "-fv"])[1:] == (False, True)
    with pytest.raises(UserError, match="nsenter"):
        parser.mount_helper(["S", "M", "-N", "1"])


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["mount"],
        ["mount", "S"],
        ["mount", "S", "M", "X"],
        ["mount", "S", "M", "-o"],
        ["mount", "--timeou=1", "S", "M"],
        ["mount", "--timeout"],
        ["nothing"],
        ["umount"],
        ["doctor", "--jso"],
    ],
)
def test_a_wrong_command_line_is_one_line_and_a_status(words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parser.build().parse_args(words)
    assert caught.value.status == exitcodes.USAGE
    assert "--help" in str(caught.value)
    assert "\n" not in str(caught.value)


_TEXT = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.one_of(
            st.sampled_from([*_WORDS, *_MOUNT_WORDS.split(), "x-a", ",", "\\", "=", "\n"]),
            st.builds("{}={}".format, st.sampled_from(_WORDS), st.text(max_size=12)),
            st.builds(
                "{}={}".format, st.sampled_from(_WORDS), st.sampled_from(["nan", "-0", "1e400", "9" * 4400, "٣"])
            ),
        ),
        max_size=8,
    ).map(",".join),
)


@given(_TEXT, st.booleans())
@example("timeout=nan", False)
@example("threads=" + "9" * 5000, False)
def test_any_text_is_taken_or_refused_in_a_line(text: str, sloppy: bool) -> None:
    settings = split_words(text)
    try:
        found = collect(settings, sloppy=sloppy)
    except UserError as error:
        status, line = error.status, str(error)
    else:
        status, line = exitcodes.OK, ""
        assert found.tree().resolved().entry_timeout_ns is not None
        assert found.mount_flags() <= set(MOUNT_FLAGS)
    assert bool(line) is (status == exitcodes.USAGE)


@given(st.lists(st.text(st.characters(exclude_characters="="), min_size=1, max_size=10), max_size=5))
def test_escaping_and_splitting_are_inverse(names: list[str]) -> None:
    escaped = ",".join("fsname=" + name.replace("\\", "\\\\").replace(",", "\\,") for name in names)
    assert split_words(escaped) == [("fsname", name) for name in names]


def test_access_lists_go_where_a_map_renames_them() -> None:
    assert with_dash_o("xattrmap=selinux").tree().posix_acl
    for text in (":map::user.x.:", ":bad:all:::", ":unsupported:client:system.::/ok/all///"):
        assert not with_dash_o(f"xattrmap={text}").tree().posix_acl


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("", None),
        ("xattrmap=selinux", None),
        ("xattrmap=:bad:all:::", None),
        ("writeback", "writeback"),
        ("writeout=immediate", "writeout=immediate"),
        ("xattrmap=:map::user.x.:", "an xattrmap that renames security.capability"),
    ],
)
def test_the_kernel_does_not_write_alone_where_the_daemon_must_see_it(text: str, seen: str | None) -> None:
    options = with_dash_o(text)
    assert options.seen_by_daemon() == seen
    assert options.tree().passthrough is (Choice.OFF if seen else Choice.AUTO)
