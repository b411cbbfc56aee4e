"""Writes recipe_hashes.json: recipes of every kind and operation, each with the digest of the bits it materialises into.

python tests/data/make_recipe_hashes.py      # after a change of stabcheck.expansion that is meant to change bits; say so in the changelog
"""

import json
import random
from itertools import cycle
from pathlib import Path

from stabcheck.expansion import materialise
from stabcheck.floats import FORMATS
from stabcheck.operations import operation
from stabcheck.operations.base import IGNORED, LARGEST, SMALLEST
from stabcheck.operations.temperature_softmax import TEMPERATURES
from stabcheck.operations.verify_speculative import PROPOSALS
from stabcheck.recipe import BACKGROUNDS, FANS, MASKS, Background, Mask, Recipe, Row, to_data
from stabcheck.strategies import LAYOUTS, edges, values

FILE = Path(__file__).with_name("recipe_hashes.json")
VOCABS = (1, 2, 3, 5, 11, 63, 128, 129, 255, 1023, 1024, 1025, 4097, 50257, 65537, 70000)
MOST_ELEMENTS = 1 << 18
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


def softmaxes(n=100, seed=2026):
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
        siblings = pick([s for s in (0, 1, 1, 2, 2, 7, 7, 40, 40, 40) if s * len(rows) * vocab <= MOST_ELEMENTS])
        yield Recipe("temperature_softmax", fmt.name, vocab, rows, siblings, next(fans), seed * 653, next(layouts))


def _rows(name, vocab, fmt, drawn, pick):
    """One row or three of an operation whose inputs come from `drawn`, one after another."""
    return tuple(
        Row(
            background(pick(BACKGROUNDS), vocab, fmt, pick),
            Mask(pick(MASKS), pick((1, 2)), pick((1, 3))),
            tuple((pick(edges(vocab, (64,))), pick((*values(fmt), *SPECIAL))) for _ in range(pick((0, 1, 2)))),
            tuple((spec.name, next(drawn[spec.name])) for spec in operation(name).inputs),
        )
        for _ in range(pick((1, 3)))
    )


OPTIONS = ((), (("ignore_index", 0),), (("label_smoothing", 0.1), ("softcap", 30.0)), (("ignore_index", 2), ("reduction", "mean")))
UPSTREAM = (1.0, 0.0, -1e30, 1e-3)


def losses(n=60, seed=2027):
    """n recipes of the operations that have targets, options or neither; fans move the targets with their columns."""
    pick = random.Random(seed).choice
    names, formats, layouts = cycle(("cross_entropy", "token_logprob", "logsumexp")), cycle(FORMATS.values()), cycle(LAYOUTS[-7:])
    targets, options, fans = cycle((LARGEST, 1, SMALLEST, 0, IGNORED, 64)), cycle(OPTIONS), cycle(("rotate", "reseed", "rotate", "scale"))
    for seed in range(n):
        name, fmt, vocab = next(names), next(formats), pick((1, 2, 3, 11, 65, 1025))
        drawn = {"target": targets, "labels": targets, "temperature": cycle(TEMPERATURES), "upstream": cycle(UPSTREAM)}
        rows = _rows(name, vocab, fmt, drawn, pick)
        chosen = next(options) if name == "cross_entropy" else ()
        yield Recipe(name, fmt.name, vocab, rows, pick((1, 2, 7, 40)), next(fans), seed * 577, next(layouts), chosen)


def choices(n=45, seed=2028):
    """n recipes of the operations on choices: filters, seeds of 64 bits, positions that count from sibling to sibling, coins."""
    pick = random.Random(seed).choice
    names, formats, layouts = cycle(("filtered_probs", "sample", "verify_speculative")), cycle(FORMATS.values()), cycle(LAYOUTS[-7:])
    drawn = {spec.name: cycle(spec.values) for name in ("sample", "verify_speculative") for spec in operation(name).inputs}
    fans, drafts, proposals = cycle(("reseed", "rotate", "ladder", "scale")), cycle((1, 2, 4)), cycle(PROPOSALS)
    for seed in range(n):
        name, fmt, vocab = next(names), next(formats), pick((1, 2, 3, 11, 65, 1025))
        rows = _rows(name, vocab, fmt, drawn, pick)
        chain = (("drafts", next(drafts)), ("proposal", next(proposals))) if name == "verify_speculative" else ()
        fan = "rotate" if chain else next(fans)
        yield Recipe(name, fmt.name, vocab, rows, pick((1, 2, 7, 40)), fan, seed * 547, next(layouts), chain)


if __name__ == "__main__":
    every = (*softmaxes(), *losses(), *choices())
    made = [{"digest": materialise(recipe).digest(), "recipe": to_data(recipe)} for recipe in every]
    FILE.write_text("[\n" + ",\n".join(json.dumps(entry, sort_keys=True) for entry in made) + "\n]\n")
    print(f"{FILE.name}: {len(made)} recipes")
