"""Files: written whole or not at all, read without running anything, and refused with a reason."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import StorageError, WriteError
from secateur.storage import (
    load_json,
    load_tensors,
    locked,
    own_folder,
    pack_bits,
    replacing,
    save_json,
    save_tensors,
    sweep,
    unpack_bits,
)

# -- replacing ---------------------------------------------------------------------------------------


def test_replacing_makes_folders_and_leaves_nothing_beside(tmp_path):
    target = tmp_path / "a" / "b" / "file"
    with replacing(target) as temporary:
        assert temporary.parent == target.parent  # a rename over a file system border is a copy
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert [p.name for p in target.parent.iterdir()] == ["file"]


def test_replacing_that_fails_leaves_the_old_file(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def failing() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        failing()
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_kill_leaves_the_old_file(tmp_path):
    target = tmp_path / "file.json"
    save_json(target, "old")
    code = (
        "import os, signal\n"
        "from secateur.storage import replacing\n"
        f"with replacing({str(target)!r}) as temporary:\n"
        "    temporary.write_text('\"ne')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert load_json(target) == "old"


def test_replacing_gives_the_rights_that_open_gives(tmp_path):
    (tmp_path / "plain").write_text("")
    save_json(tmp_path / "ours", 1)
    rights = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours")]
    assert rights[0] == rights[1]


# -- JSON --------------------------------------------------------------------------------------------


def test_json_there_and_back(tmp_path):
    value = {"name": "Größe", "list": [1, 2.5, None, True], "deep": {"x": {}}}
    save_json(tmp_path / "x.json", value)
    assert load_json(tmp_path / "x.json") == value
    assert (tmp_path / "x.json").read_text().endswith("}\n")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), {1, 2}, torch.ones(1), b"bytes"])
def test_what_json_has_not_is_refused_and_the_old_file_stays(tmp_path, bad):
    path = tmp_path / "x.json"
    save_json(path, "old")
    with pytest.raises(StorageError, match=r"x\.json: cannot be written as JSON: .+"):
        save_json(path, {"value": [bad]})
    assert load_json(path) == "old"


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": }', b"\xff\xfe\x00"])
def test_malformed_json(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"x\.json: not valid JSON: .+"):
        load_json(tmp_path / "x.json")


NO_JSON = {
    "nan": (b'{"a": NaN}', "NaN is no finite number"),
    "infinity": (b"[-Infinity]", "-Infinity is no finite number"),
    "too large for a float": (b"[1e400]", "1e400 is no finite number"),
    "digits": (b"[" + b"7" * 5000 + b"]", "a whole number of 5000 digits"),
    "more digits than 64 bits have": (b"123456789012345678901", "a whole number of 21 digits"),
    "deep": (b"[" * 100_000 + b"]" * 100_000, "recursion|nested"),
    "rather deep": (b"[" * 200 + b"]" * 200, "nested deeper than 100"),
    "a key twice": (b'{"a": {"b": 1, "c": 2, "b": 1}}', "key 'b' stands twice"),
    "half a pair": (b'["\\uD800"]', "surrogates not allowed"),
    "half a pair as a key": (b'{"\\udfff": 1}', "surrogates not allowed"),
    "a byte order mark": (b"\xef\xbb\xbf[]", "BOM"),
    "utf-16": ("[]".encode("utf-16"), "can't decode"),
    "a zero byte": (b"[]\0", "Extra data"),
    "many values": (b"[" + b"[]," * 8_000_001 + b"0]", "more than 8,000,000 values"),
}


@pytest.mark.parametrize("what", NO_JSON)
def test_json_is_read_strictly(tmp_path, what):
    content, words = NO_JSON[what]
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(StorageError, match=rf"x\.json: not valid JSON: .*({words})"):
        load_json(tmp_path / "x.json")


def test_json_that_looks_odd_and_is_right(tmp_path):
    text = '{"": "\\ud83d\\ude00 \\\\ud800 [[{,,", "a": [1e308, -0.0, 9223372036854775807, 5e-324]}'
    (tmp_path / "x.json").write_text(text)
    assert load_json(tmp_path / "x.json") == {
        "": "\U0001f600 \\ud800 [[{,,",
        "a": [1e308, -0.0, 2**63 - 1, 5e-324],
    }


def test_a_json_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(StorageError, match=r"x\.json: over 256 MiB are too large for a JSON file"):
        load_json(tmp_path / "x.json")


@pytest.mark.parametrize("load", [load_json, load_tensors])
def test_what_is_no_plain_file_is_refused_at_once(tmp_path, load):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(StorageError, match=f"{name}: is a pipe, a socket or a device, not a file"):
            load(tmp_path / name)
    for name, words in [
        ("loop", "symbolic links"),
        ("x" * 300, "too long"),
        ("a\0b", "null"),
        ("\ud800", ""),
    ]:
        with pytest.raises(StorageError, match=f": cannot be read: .*{words}"):
            load(tmp_path / name)


@pytest.mark.parametrize("load", [load_json, load_tensors])
def test_missing_files_and_folders(tmp_path, load):
    with pytest.raises(StorageError, match=r"nowhere: no such file$"):
        load(tmp_path / "nowhere")
    with pytest.raises(StorageError, match=r": is a folder, not a file$"):
        load(tmp_path)


# -- bits --------------------------------------------------------------------------------------------


def test_bits_by_hand():
    mask = torch.tensor([[1, 0, 0, 0, 0], [0, 1, 1, 1, 0]], dtype=torch.bool)
    assert pack_bits(mask).tolist() == [0b10000011, 0b10000000]
    assert torch.equal(unpack_bits(pack_bits(mask), (2, 5)), mask)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 9), max_size=3).map(tuple), st.integers(0, 99))
def test_bits_there_and_back(shape, seed):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack_bits(mask)
    assert packed.numel() == -(-mask.numel() // 8)
    assert torch.equal(unpack_bits(packed, shape), mask)


@pytest.mark.parametrize(
    "packed",
    [torch.zeros(1, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int8)],
)
def test_bits_that_do_not_fit(packed):
    with pytest.raises(StorageError, match=rf"packed mask has {packed.numel()} bytes; 2 are right"):
        unpack_bits(packed, (3, 4))


@pytest.mark.parametrize("shape", [(-3, -4), (True, 12), (3.0, 4), ("3", 4), (None,)])
def test_bits_of_what_is_no_shape(shape):
    with pytest.raises(StorageError, match="is no shape of a mask"):
        unpack_bits(torch.zeros(2, dtype=torch.uint8), shape)


# -- what cannot be written, links, leftovers --------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_full_or_read_only_disk_is_one_error_that_names_the_file(tmp_path, monkeypatch, number):
    save_json(tmp_path / "x.json", "old")

    def full(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    message = rf"x\.json: cannot be written: {os.strerror(number)}$"
    with pytest.raises(WriteError, match=message):
        save_json(tmp_path / "x.json", "new")
    with pytest.raises(WriteError, match=message):
        save_tensors(tmp_path / "x.json", {"a": torch.ones(1)})
    assert load_json(tmp_path / "x.json") == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_kill_left_is_swept_and_what_is_in_use_stays(tmp_path):
    code = (
        "import os, sys\n"
        "from secateur.storage import replacing\n"
        "with replacing(sys.argv[1]) as temporary:\n"
        "    os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.json"], check=False)
    (tmp_path / ".bashrc").write_text("the user's own")
    (tmp_path / "aim").write_text("not ours")
    (tmp_path / ".a.json.abcdefgh").symlink_to(tmp_path / "aim")
    assert len(list(tmp_path.iterdir())) == 4
    with replacing(tmp_path / "b.json") as temporary:
        sweep(tmp_path)
        assert temporary.exists()
        temporary.write_text("1")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {".bashrc", "aim", ".a.json.abcdefgh", "b.json"}
    assert (tmp_path / "aim").read_text() == "not ours"


def test_a_lock_changes_no_file_and_follows_no_link(tmp_path):
    aim = tmp_path / "aim"
    aim.write_text("precious")
    (tmp_path / "a.lock").symlink_to(aim)
    os.link(aim, tmp_path / "b.lock")
    os.mkfifo(tmp_path / "c.lock")
    for name, message in (("a", "is a link"), ("b", "is no plain file"), ("c", "is no plain file")):
        with (
            pytest.raises(StorageError, match=rf"{name}\.lock: {message}"),
            locked(tmp_path / f"{name}.lock"),
        ):
            pass
    assert aim.read_text() == "precious"
    (tmp_path / "d.lock").write_text("kept")
    with locked(tmp_path / "d.lock"):
        assert (tmp_path / "d.lock").read_text() == "kept"


def test_of_two_that_wait_for_a_removed_lock_one_goes_on(tmp_path):
    path, inside, most = tmp_path / "lock", [0], []

    def work():
        for _ in range(50):
            with locked(path):
                inside[0] += 1
                most.append(inside[0])
                inside[0] -= 1
                path.unlink()  # from here on another may hold the next file of that name

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 150


def test_a_folder_of_ones_own_is_no_link(tmp_path):
    assert own_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(StorageError, match="link: is a link, which is not followed"):
        own_folder(tmp_path / "link")
