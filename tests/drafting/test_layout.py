"""The files of a log: splits, parts, and what lies beside them."""

import pytest

from cadc_jax.drafting import layout
from cadc_jax.errors import DataError

ROWS = "user_id,item_id\n" + "".join(f"{x % 7},{x % 5}\n" for x in range(35))


def files(folder, *names, text=ROWS):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("names", "want"),
    [
        (["log.csv"], {"train": "log.csv"}),
        (["part-1.csv", "part-2.csv"], {"train": "part-*.csv"}),
        (["train.csv", "test.csv"], {"train": "train.csv", "test": "test.csv"}),
        (["train.csv", "dev.csv"], {"train": "train.csv", "validation": "dev.csv"}),
        (
            ["data/train-0-of-2.csv", "data/train-1-of-2.csv", "data/test-0-of-1.csv"],
            {"train": "data/train-*-of-2.csv", "test": "data/test-0-of-1.csv"},
        ),
        (
            ["train/a.csv", "train/b.csv", "test/c.csv", "test/d.csv"],
            {"train": "train", "test": "test"},
        ),
        (["log.csv", "readme.txt", "_log.csv", ".log.csv"], {"train": "log.csv"}),
    ],
)
def test_splits_and_parts_are_found_by_their_names(tmp_path, names, want):
    assert layout.find(files(tmp_path, *names)).files == want


def test_a_file_alone_is_the_log_whatever_lies_beside_it(tmp_path):
    found = layout.find(files(tmp_path, "train.csv", "test.csv") / "test.csv")
    assert (found.folder, found.files) == (tmp_path, {"train": "test.csv"})


def test_a_file_of_negatives_is_no_split(tmp_path):
    files(tmp_path, "train.csv", "test.csv")
    files(tmp_path, "test_negatives.csv", text="user_id,one,two\n1,2,3\n")
    assert layout.find(tmp_path).files == {"train": "train.csv", "test": "test.csv"}


def test_the_largest_table_of_users_and_items_is_the_log(tmp_path):
    files(tmp_path, "ratings.csv", text=ROWS + "1,2\n" * 100)
    files(tmp_path, "tags.csv", text="user_id,item_id,tag\n" + "1,2,odd\n2,2,odd\n" * 9)
    files(tmp_path, "movies.csv", text="item_id,title\n1,One\n2,Two\n")
    found = layout.find(tmp_path)
    assert found.files == {"train": "ratings.csv"}
    assert {kind: head.path.name for kind, head in found.content.items()} == {"item": "movies.csv"}


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no file with rows of users and items in it"):
        layout.find(tmp_path)
