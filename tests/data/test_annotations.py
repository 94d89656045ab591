from __future__ import annotations

import random

import pytest

from stereo_core.data.annotations import check_files, quote, read_annotations, split_line, write_annotations
from stereo_core.errors import DataError


def test_columns_blanks_comments_and_byte_order_mark(tmp_path):
    text = '\ufeff# a comment\n\nl.png   r.png\n\tl.png r.png\td.pfm  \r\n"my l.png" r.png d.pfm m.png\n   # another\n'
    (tmp_path / "a.txt").write_text(text, encoding="utf-8", newline="")
    samples = read_annotations(tmp_path / "a.txt", "/data")
    assert [(s.left, s.right, s.disparity, s.mask) for s in samples] == [
        ("/data/l.png", "/data/r.png", None, None),
        ("/data/l.png", "/data/r.png", "/data/d.pfm", None),
        ("/data/my l.png", "/data/r.png", "/data/d.pfm", "/data/m.png"),
    ]
    assert [s.line for s in samples] == [3, 4, 5]
    assert samples[2].where == f"{tmp_path / 'a.txt'}:5"


def test_relative_paths_start_at_data_root_else_at_the_list_not_at_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    (tmp_path / "a.txt").write_text("x/l.png /abs/r.png\n")
    assert read_annotations(tmp_path / "a.txt")[0].left == str(tmp_path / "x" / "l.png")
    assert read_annotations(tmp_path / "a.txt", "root")[0].left == "root/x/l.png"
    assert read_annotations(tmp_path / "a.txt", "root")[0].right == "/abs/r.png"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("a b c d e", "5 columns"),
        ("a.png", "1 column;"),
        ("my left.png my right.png d.pfm", "5 columns.*double quotes"),
        ('"a b', "a quote is not closed"),
        ('"a"b c', "a quote is not closed"),
        ("a\0 b", "zero byte"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, complaint):
    (tmp_path / "a.txt").write_text(f"l r\n\n{line}\n")
    with pytest.raises(DataError, match=rf"a\.txt:3: .*{complaint}"):
        read_annotations(tmp_path / "a.txt")


@pytest.mark.parametrize("text", ["", "\n \n", "# nothing\n"])
def test_an_empty_list_is_an_error(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(DataError, match=r"a\.txt: the annotation list is empty"):
        read_annotations(tmp_path / "a.txt")


def test_a_missing_list_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt: .*No such file"):
        read_annotations(tmp_path / "none.txt")


def test_missing_files_are_named_with_line_and_column(tmp_path):
    for name in ("l.png", "r.png"):
        (tmp_path / name).touch()
    (tmp_path / "a.txt").write_text("l.png r.png\n\nl.png r.png gone.pfm\nl.png lost/r.png\n")
    samples = read_annotations(tmp_path / "a.txt")
    check_files(samples[:1])
    with pytest.raises(DataError) as error:
        check_files(samples)
    first, second, *_ = str(error.value).splitlines()
    assert "a.txt:3: no such disparity file" in first and "gone.pfm" in first
    assert "a.txt:4: no such right file" in second and "lost/r.png" in second


def test_any_path_survives_writing_and_reading(tmp_path):
    rng = random.Random(0)
    alphabet = "ab/.-_ \t\"#'ü深\u00a0\u3000\\\udcff"
    rows = [
        ["/" + "".join(rng.choices(alphabet, k=rng.randint(1, 12))) for _ in range(rng.randint(2, 4))]
        for _ in range(500)
    ]
    write_annotations(tmp_path / "a.txt", rows)
    read = [
        [path for path in (s.left, s.right, s.disparity, s.mask) if path] for s in read_annotations(tmp_path / "a.txt")
    ]
    assert read == rows


def test_a_whitespace_splitter_agrees_where_no_blank_occurs(tmp_path):
    rows = [["/a/l.png", "/a/it's#1.png", "/a/ü.pfm"], ["/my a/l.png", "/a/r.png"]]
    write_annotations(tmp_path / "a.txt", rows)
    first, second = (tmp_path / "a.txt").read_text(encoding="utf-8").splitlines()
    assert first.split() == rows[0] == split_line(first)
    assert second == '"/my a/l.png" /a/r.png'


def test_a_relative_path_that_looks_like_a_comment_is_quoted(tmp_path):
    write_annotations(tmp_path / "a.txt", [["#l.png", "r.png"]])
    assert read_annotations(tmp_path / "a.txt", "root")[0].left == "root/#l.png"


def test_a_line_break_in_a_name_can_not_be_written(tmp_path):
    with pytest.raises(DataError, match="line break"):
        quote("a\nb")
    with pytest.raises(DataError, match="line break"):
        write_annotations(tmp_path / "a.txt", [["a\nb", "c"]])
    assert not list(tmp_path.iterdir())
