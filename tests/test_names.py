from __future__ import annotations

from stereo_core.files import UniqueNames


def test_names_never_collide():
    names = UniqueNames()
    assert [names(n) for n in ("a", "b", "a", "a-2", "a")] == ["a", "b", "a-2", "a-2-2", "a-3"]
