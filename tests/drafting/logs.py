"""Small logs in the formats that people have, written to disk."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet

USERS, ITEMS = 30, 40


def rows(seed=0):
    """Users, items, ratings of 1 to 5 and seconds [N], of different pairs in order of time."""
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(np.unique(rng.integers(0, [USERS, ITEMS], (700, 2)), axis=0))
    user, item = pairs.T
    rating = 1 + (user * 7 + item * 3 + rng.integers(0, 2, len(user))) % 5
    return user, item, rating, 1_500_000_000 + 60 * np.arange(len(user))


def lines(*columns, separator=","):
    return "".join(separator.join(map(str, row)) + "\n" for row in zip(*columns, strict=True))


def ratings_csv(folder):
    """With a header, and with movies beside it."""
    user, item, rating, time = rows()
    text = "userId,movieId,rating,timestamp\n" + lines(user, item, rating, time)
    (folder / "ratings.csv").write_text(text)
    movies = "".join(f'{n},"Film, {n}",{("Drama", "Comedy|War")[n % 2]}\n' for n in range(ITEMS))
    (folder / "movies.csv").write_text("movieId,title,genres\n" + movies)
    (folder / "README.txt").write_text("some words\n")
    return folder


def two_colons(folder):
    """Without a header."""
    (folder / "ratings.dat").write_text(lines(*rows(), separator="::"))
    return folder / "ratings.dat"


def plays_tsv(folder):
    """Counts, users and artists as text, dates."""
    user, item, rating, time = rows()
    when = [str(x).replace("T", " ") for x in time.astype("datetime64[s]")]
    names = [f"ann{x}" for x in user], [f"The {x}s" for x in item]
    text = "listener\tartist\tplays\tdate\n" + lines(*names, 10 * rating**2, when, separator="\t")
    (folder / "plays.tsv").write_text(text)
    return folder / "plays.tsv"


def adjacency(folder):
    """The format of LightGCN, with a test file."""
    user, item, *_ = rows()
    for name, part in (("train", item % 5 > 0), ("test", item % 5 == 0)):
        items_of = (" ".join(map(str, item[(user == x) & part])) for x in range(USERS))
        text = "".join(f"{x} {items}\n" for x, items in enumerate(items_of))
        (folder / f"{name}.txt").write_text(text)
    return folder


def clicks_parquet(folder):
    """Impressions of a hub's snapshot: parts of two splits in the folder 'data'."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, [USERS, ITEMS], (1500, 2)).T
    table = pa.table(
        {
            "user_id": [f"u{x}" for x in user],
            "ad_id": item,
            "hour": rng.integers(0, 24, 1500),
            "price": rng.random(1500),
            "words": [["a"]] * 1500,
            "click": rng.random(1500) < np.where((user + item) % 2, 0.7, 0.3),
        }
    )
    (folder / "data").mkdir()
    (folder / "README.md").write_text("# a data set\n")
    bounds = {"train-00000-of-00002": (0, 500), "train-00001-of-00002": (500, 500)}
    bounds |= {"validation-00000-of-00001": (1000, 200), "test-00000-of-00001": (1200, 300)}
    for name, (start, count) in bounds.items():
        part = table.slice(start, count)
        pyarrow.parquet.write_table(part, folder / "data" / f"{name}.parquet")
    return folder


def saved_arrow(folder):
    """A data set that was saved to disk, in two streams."""
    user, item, _, time = rows()
    table = pa.table({"user": user, "item": item, "timestamp": time})
    for part, start in enumerate((0, 200)):
        piece = table.slice(start, 200 if part == 0 else None)
        file = folder / f"data-0000{part}-of-00002.arrow"
        with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, table.schema) as stream:
            stream.write_table(piece)
    names = [{"filename": f"data-0000{part}-of-00002.arrow"} for part in (0, 1)]
    (folder / "state.json").write_text(json.dumps({"_data_files": names}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


LOGS = {
    make.__name__: make
    for make in (ratings_csv, two_colons, plays_tsv, adjacency, clicks_parquet, saved_arrow)
}
