"""Draw the sample shop: a small made-up catalogue with pictures, several offers a product, near twins and broken rows.

    python -m training.sample_shop --output demo/shop
    python -m training.sample_shop --output /tmp/shop --products 2000 --seed 7 --format jsonl
    python -m training.sample_shop --output /tmp/large --products 222000 --no-pictures --rows-a-file 100000

260 products give about 1,170 listings in 26 leaf categories, in about ten seconds. The folder holds `catalog.parquet`
with `images/`, further offers of the val and test listings for the evaluation in `offers/`, and in `sample_shop.json`
what was planted: near twins, missing fields, and the rows that a check has to refuse.
The same seed gives the same bytes. The last command writes about a million rows into ten files in some minutes on one
core; its memory does not grow with their number.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from item.errors import ItemError
from training.sample_shop.shop import FileFormat, ShopConfig, write_shop


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.sample_shop", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder to write; an older sample shop is replaced"
    )
    parser.add_argument(
        "--products", type=int, default=ShopConfig.products, help="number of products (default %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=ShopConfig.seed, help="another seed, another shop (default %(default)s)"
    )
    parser.add_argument(
        "--format", choices=get_args(FileFormat), default=ShopConfig.format, help="of the tables (default %(default)s)"
    )
    parser.add_argument("--no-pictures", dest="pictures", action="store_false", help="listings of words alone")
    parser.add_argument("--rows-a-file", type=int, metavar="N", help="further files after so many rows (all in one)")
    arguments = parser.parse_args(argv)
    started = time.perf_counter()
    try:
        config = ShopConfig(
            products=arguments.products,
            seed=arguments.seed,
            format=arguments.format,
            pictures=arguments.pictures,
            rows_a_file=arguments.rows_a_file,
        )
        planted = write_shop(arguments.output, config)
    except (ItemError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{arguments.output}: {planted['listings']:,} listings of {planted['products']:,} products "
        f"in {planted['leaves']} leaf categories, {len(planted['broken'])} broken rows, "
        f"{planted['further_offers']:,} further offers ({time.perf_counter() - started:.1f} s)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
