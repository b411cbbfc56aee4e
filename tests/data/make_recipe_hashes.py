"""Writes recipe_hashes.json: a hundred recipes of every kind, each with the digest of the bits it materialises into.

python tests/data/make_recipe_hashes.py      # after a change of stabcheck.batches that is meant to change bits; say so in the changelog
"""

import json
import random
from itertools import cycle
from pathlib import Path

from stabcheck.expansion import materialise
from stabcheck.floats import FORMATS
from stabcheck.operations.temperature_softmax import TEMPERATURES
from stabcheck.recipe import BACKGROUNDS, FANS, MASKS, Background, Mask, Recipe, Row, to_data
from stabcheck.strategies import LAYOUTS, edges, values

FILE = Path(__file__).with_name("recipe_hashes.json")
VOCABS = (1, 2, 3, 5, 11, 63, 128, 129, 255, 1023, 1024, 1025, 4097, 50257, 65537, 70000)
LARGEST = 1 << 18  # elements
SPECIAL = (float("nan"), float("inf"), float("-inf")) * 4


def background(kind, vocab, fmt, pick):
    """A background of the kind."""
    if kind == "literal":
        return Background(kind, (pick(values(fmt)), float("-inf"), float("nan"), 1.0)[: min(vocab, 4)], _counts(vocab))
    count = {"constant": 1, "palette": 4, "bits": 0}.get(kind)
    if count is None:
        return Background(kind, (pick((0.0, 100.0, -1e4)), pick((1.0, 0.1, 30.0, 1e4, 1e30, -1e-3))))
    return Background(kind, tuple(pick(values(fmt)) for _ in range(count)))


def _counts(vocab):
    return (vocab - min(vocab - 1, 3), *(1,) * min(vocab - 1, 3))


def recipes(n=100, seed=2026):
    """n recipes that together go through every format, background, mask, fan, layout and size."""
    pick = random.Random(seed).choice
    kinds, masks, fans = cycle(BACKGROUNDS), cycle(MASKS), cycle(FANS)
    formats, layouts, vocabs = cycle(FORMATS.values()), cycle(LAYOUTS[-7:]), cycle(VOCABS)
    for seed in range(n):
        fmt, vocab = next(formats), next(vocabs)
        rows = tuple(
            Row(
                background(next(kinds), vocab, fmt, pick),
                Mask(next(masks), pick((1, 2, vocab // 2, vocab)), pick((1, 3, vocab))),
                tuple((pick(edges(vocab, (1024,))), pick((*values(fmt), *SPECIAL))) for _ in range(pick((0, 1, 3)))),
                (("temperature", pick(TEMPERATURES)),),
            )
            for _ in range(pick((1, 2, 3)))
        )
        siblings = pick([s for s in (0, 1, 1, 2, 2, 7, 7, 40, 40, 40) if s * len(rows) * vocab <= LARGEST])
        yield Recipe("temperature_softmax", fmt.name, vocab, rows, siblings, next(fans), seed * 653, next(layouts))


if __name__ == "__main__":
    made = [{"digest": materialise(recipe).digest(), "recipe": to_data(recipe)} for recipe in recipes()]
    FILE.write_text("[\n" + ",\n".join(json.dumps(entry, sort_keys=True) for entry in made) + "\n]\n")
    print(f"{FILE.name}: {len(made)} recipes")
