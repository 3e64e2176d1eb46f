"""How much a busy machine stretches time, so that budgets in milliseconds can be kept honestly.

A fixed loop, about as long as one budget of a frame, is timed many times over. Its fastest run
is what the machine can do, its median what it did while others worked on it. A budget is
multiplied by their ratio and by nothing else, so on an idle machine it stands as it is.
"""

from __future__ import annotations

LOOP = """
function paceLoop() {
  const began = performance.now();
  const row = new Float64Array(256);
  for (let i = 0; i < 40000; i += 1) for (let j = 0; j < 256; j += 1) row[j] += i * j;
  return performance.now() - began + (row[3] < 0 ? 1 : 0);
}
"""


def slowdown(page) -> float:
    """Median over fastest of the loop on this page; 1 on a machine that does nothing else."""
    return page.evaluate(
        "async () => {"
        + LOOP
        + """
        const times = [];
        for (let i = 0; i < 40; i += 1) {
          times.push(paceLoop());
          await new Promise((done) => setTimeout(done, 5));
        }
        times.sort((a, b) => a - b);
        return times[20] / times[0];
      }"""
    )
