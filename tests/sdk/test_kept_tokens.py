"""`--keep-tokens FILE`: what may stand in it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgegen.common.codec import save_json
from edgegen.errors import ConfigError
from edgegen.records.learning import Restore
from edgegen.sdk.wishes import read_kept_tokens

RESTORE = Restore(schema=1, model="m", model_digest="", release="k@1.0.0", byte_fraction=0.1, tokens=("ß", "Ġé", "ß"))


def test_a_list_of_lines_json_or_what_learn_wrote(tmp_path: Path) -> None:
    path = tmp_path / "keep"
    for content in (b"\xc3\x9f\n\n\xc4\xa0\xc3\xa9\n", msgspec.json.encode(RESTORE.tokens)):
        path.write_bytes(content)
        assert read_kept_tokens(str(path)) == ("ß", "Ġé")
    save_json(path, RESTORE)
    assert read_kept_tokens(path) == ("ß", "Ġé")
    assert read_kept_tokens(("b", "a", "b")) == ("a", "b")
    assert read_kept_tokens(None) == ()


@pytest.mark.parametrize("content", [b"", b"\n\n", b"[]", b"[1]", b'{"tokens": 3}', b"{", b"\xff\xfe"])
def test_what_names_no_token_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keep"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        read_kept_tokens(path)
    with pytest.raises(ConfigError, match="no such file"):
        read_kept_tokens(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="names no file"):
        read_kept_tokens("")
