"""Files that carry their own checksum: no flipped bit and no lie goes unnoticed."""

import json

import pytest

from hpc_stres.errors import UserError
from hpc_stres.run.paths import read_sealed, sealed, unsealed, write_sealed

VALUE = {
    "step": 10,
    "classes": ["a", "ü"],
    "loss": 0.1 + 0.2,
    "nested": {2: 1, 10: [1.5, None, True]},
}


def test_what_is_written_is_read_back(tmp_path):
    write_sealed(tmp_path / "x.json", VALUE)
    assert read_sealed(tmp_path / "x.json", "do it again") == json.loads(json.dumps(VALUE))


def test_every_flipped_bit_is_noticed_or_harmless(tmp_path):
    path = tmp_path / "x.json"
    write_sealed(path, VALUE)
    whole, right = path.read_bytes(), read_sealed(path, "again")
    for bit in range(8 * len(whole)):
        torn = bytearray(whole)
        torn[bit // 8] ^= 1 << bit % 8
        path.write_bytes(torn)
        try:
            seen = read_sealed(path, "again")
        except UserError as error:
            seen, said = right, str(error)
            assert str(path) in said
        assert seen == right


def test_missing_torn_unsealed_and_foreign_files_are_sentences(tmp_path):
    for name, data in {
        "torn": b'{"step": 1', "list": b"[1]", "bare": b'{"step": 1}', "latin": b'{"a": "\xe4"}', "empty": b"",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            read_sealed(tmp_path / name, "again")
    with pytest.raises(UserError, match="No such file"):
        read_sealed(tmp_path / "missing", "again")


def test_a_row_that_was_edited_is_noticed():
    row = sealed({"id": "a", "scores": [1.0, 2.0]})
    row["scores"][0] = 3.0
    with pytest.raises(UserError, match="row 3"):
        unsealed(row, "row 3", "again")
