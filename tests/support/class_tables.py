"""Makes `edgeedit/codec/core/class_tables.h`, how the frozen integer tables of the mask coder were made.

    python tests/support/class_tables.py > edgeedit/codec/core/class_tables.h

Density class m stands for the probability p = 1 / (1 + exp(0.2 m)) that an entry is in the mask.  Eight entries are one byte; a byte
with k bits has probability p^k (1-p)^(8-k).  Bytes with more than `limit` bits share one escape.  The sum of all frequencies
is 4096.  `limit` is the one with the least expected cost, the escaped byte being eight raw bits.
"""

from __future__ import annotations

import math

CLASSES = 33
TOTAL = 4096


def table(m: int) -> tuple[int, list[int], int]:
    """(limit, frequency of one byte with 0..limit bits, frequency of the escape) of class m."""
    p = 1 / (1 + math.exp(0.2 * m))
    single = [p**k * (1 - p) ** (8 - k) for k in range(9)]
    ways = [math.comb(8, k) for k in range(9)]
    best: tuple[float, int, list[int], int] | None = None
    for limit in range(9):
        rest = sum(w * s for w, s in zip(ways[limit + 1 :], single[limit + 1 :], strict=True))
        escape = 0 if limit == 8 else max(1, round(rest * TOTAL))
        frequencies = [max(1, math.floor(s * TOTAL)) for s in single[: limit + 1]]
        left = TOTAL - escape - sum(w * f for w, f in zip(ways, frequencies, strict=False))
        # What rounding leaves goes to the zero byte, the only one of its kind.
        frequencies[0] += left
        if frequencies[0] < 1:
            continue
        cost = sum(w * s * math.log2(TOTAL / f) for w, s, f in zip(ways, single, frequencies, strict=False))
        cost += rest * (math.log2(TOTAL / escape) + 8) if escape else 0.0
        if best is None or cost < best[0]:
            best = (cost, limit, frequencies, escape)
    if best is None:
        raise ValueError(f"class {m} has no table")
    return best[1], best[2], best[3]


def row_of(limit: int, frequencies: list[int], escape: int) -> str:
    """One line of the C++ header."""
    padded = frequencies + [0] * (9 - len(frequencies))
    return f"    {{{limit}, {{{', '.join(map(str, padded))}}}, {escape}}},"


def header() -> str:
    """The C++ header."""
    rows = [row_of(*table(m)) for m in range(CLASSES)]
    body = "\n".join(rows)
    return f"""// Made by tests/support/class_tables.py; frozen: a change here changes the meaning of every patch.
#ifndef EDGEEDIT_CLASS_TABLES_H_
#define EDGEEDIT_CLASS_TABLES_H_

#include <cstdint>

namespace edgeedit {{

struct ClassTable {{
  std::uint8_t limit;          // most bits of a byte that has a frequency of its own
  std::uint16_t frequency[9];  // of one byte with 0..limit bits
  std::uint16_t escape;        // all other bytes together; 0 exactly when limit is 8
}};

constexpr ClassTable kClassTables[{CLASSES}] = {{
{body}
}};

}}  // namespace edgeedit

#endif  // EDGEEDIT_CLASS_TABLES_H_
"""


if __name__ == "__main__":
    print(header(), end="")
