import io
import tarfile
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_rn50.shards.tar import TarError, TarWriter, header_of, samples_in, walk
from tests.shards.helpers import members_of, tar_of

names = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1)
contents = st.binary(max_size=1200)


@given(name=st.one_of(names, st.text(st.characters(codec="ascii"), min_size=1, max_size=120)))
def test_a_header_is_what_tarfile_writes(name):
    name = name.replace("\0", "_").replace("/", "_")
    info = tarfile.TarInfo(name)
    info.size = len(name) * 1000
    assert header_of(name, info.size) == info.tobuf(tarfile.PAX_FORMAT)


@given(members=st.dictionaries(names, contents, max_size=6))
def test_tarfile_and_the_strict_walk_read_back_what_was_written(members):
    buffer = io.BytesIO()
    tar = TarWriter(buffer)
    offsets = {name: tar.add(name, content) for name, content in members.items()}
    tar.close()
    written = buffer.getvalue()
    assert tar.num_bytes == len(written)
    for name, content in members.items():
        assert written[offsets[name] : offsets[name] + len(content)] == content
    assert {m.name: written[m.offset : m.offset + m.size] for m in walk(written)} == members
    with tarfile.open(fileobj=io.BytesIO(written)) as read:
        assert members_of(read) == members


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_walk_reads_all_dialects_of_tarfile_and_passes_over_what_is_no_file(form):
    buffer = io.BytesIO()
    long_name = "folder/" * 20 + "a.jpg"
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(folder)
        tar.addfile(link)
        for name in ("plain.jpg", long_name):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    assert [member.name for member in walk(buffer.getvalue())] == ["plain.jpg", long_name]


@given(cut=st.integers(0, 4 * 1024 + 1023))
def test_a_tar_cut_anywhere_is_noticed(cut):
    buffer = io.BytesIO()
    tar = TarWriter(buffer)
    tar.add("a.jpg", bytes(500))
    tar.add("a.cls", b"1")
    tar.add("b.jpg", b"x" * 600)
    tar.close()
    whole = buffer.getvalue()
    with pytest.raises(TarError, match="cut off"):
        list(walk(whole[: min(cut, len(whole) - 1)]))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("digit", [b"0", b"2", b"9", b"v", b" ", b"\0", b"-"])
def test_a_walk_past_a_damaged_pax_header_ends(digit):
    written = tar_of({"n01440764_猫.jpg": b"abc", "b.jpg": b"xyz"})
    (begin,) = [at for at in range(len(written)) if written.startswith(b"path=", at)]
    for at in range(begin - 3, begin + 1):  # the length of the record, and the blank
        damaged = written[:at] + digit + written[at + 1 :]
        with suppress(TarError):
            assert [member.name for member in walk(damaged)][-1] == "b.jpg"


def test_data_behind_the_end_mark_are_noticed():
    with pytest.raises(TarError, match="behind its end mark"):
        list(walk(tar_of({"a.jpg": b"1"}) + b"more"))


def test_samples_share_a_name_up_to_the_first_dot_behind_the_last_slash():
    content = tar_of({"v1.0/x.y.JPG": b"1", "v1.0/x.cls": b"2", "z.cls": b"3", "README": b""})
    found = [(s.key, sorted(s.members), s.labels(content)) for s in samples_in(content)]
    assert found == [("v1.0/x", ["cls", "y.jpg"], [(".cls", 2)]), ("z", ["cls"], [(".cls", 3)])]
