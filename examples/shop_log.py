"""Makes up the ratings of a shop, to try the program on: 40,000 products, ids that are text.

    python examples/shop_log.py shop.csv.gz
    cadc init shop.csv.gz

Customers have departments that they like, products have a popularity, and both follow long tails.
The same file is made each time.
"""

import gzip
import sys

import numpy as np

CUSTOMERS, PRODUCTS, DEPARTMENTS, ROWS = 25_000, 40_000, 40, 700_000
FIRST_SECOND, SECONDS = 1_600_000_000, 60_000_000


def ratings(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Customer, product, stars (1 to 5) and second of each rating: four arrays [ROWS] int."""
    rng = np.random.default_rng(seed)
    taste = rng.dirichlet(np.full(DEPARTMENTS, 0.15), CUSTOMERS)
    department = rng.integers(0, DEPARTMENTS, PRODUCTS)
    popularity = rng.pareto(1.1, PRODUCTS) + 0.05
    activity = rng.pareto(1.3, CUSTOMERS) + 0.3
    customer = rng.choice(CUSTOMERS, ROWS, p=activity / activity.sum())
    chosen = (taste[customer].cumsum(axis=1) > rng.random((ROWS, 1))).argmax(axis=1)
    place, product = rng.random(ROWS), np.zeros(ROWS, np.int64)
    for number in range(DEPARTMENTS):
        products, rows = np.flatnonzero(department == number), np.flatnonzero(chosen == number)
        share = np.cumsum(popularity[products]) / popularity[products].sum()
        product[rows] = products[np.searchsorted(share, place[rows])]
    liking = taste[customer, department[product]]
    stars = np.rint(rng.normal(3.6 + 1.2 * (liking - 0.3), 0.9)).clip(1, 5).astype(np.int64)
    return customer, product, stars, FIRST_SECOND + rng.integers(0, SECONDS, ROWS)


def main() -> None:
    """Writes the file that the command line names."""
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/shop_log.py FILE.csv.gz")
    with gzip.open(sys.argv[1], "wt", compresslevel=3) as file:
        file.write("customer,sku,stars,when\n")
        for customer, product, stars, when in zip(*ratings(seed=7), strict=True):
            file.write(f"c-{customer:05x},SKU{product:06d},{stars},{when}\n")


if __name__ == "__main__":
    main()
