"""Files in parts are found by the name of the whole, and joined in the order of their numbers."""

from cadc_jax.runtime import parts


def test_the_parts_of_a_file_are_found_in_the_order_of_their_numbers():
    sizes = {"a/x.npy.part10": 3, "a/x.npy.part9": 2, "a/x.npy.part0": 1, "y": 7}
    found = parts.by_file(sizes)
    assert list(found["a/x.npy"].items()) == [
        ("a/x.npy.part0", 1),
        ("a/x.npy.part9", 2),
        ("a/x.npy.part10", 3),
    ]
    assert found["y"] == {"y": 7} and len(found) == 2


def test_a_whole_file_counts_rather_than_parts_of_it():
    assert parts.by_file({"x.part0": 1, "x": 2}) == {"x": {"x": 2}}


def test_joined_parts_are_the_file(tmp_path):
    files = [parts.part_of(tmp_path / "x", number) for number in range(3)]
    for file, content in zip(files, (b"12", b"", b"3"), strict=True):
        file.write_bytes(content)
    parts.join(files, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"123"
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]
