// The one selection that every view reads and writes.

/**
 * A store of one flat object. `set` tells every listener the state and which names changed;
 * `follow(state, patch)` may add to a patch what has to change with it.
 */
export function makeStore(initial, follow = (_, patch) => patch) {
  let state = { ...initial };
  const listeners = new Set();
  return {
    get: () => state,
    set(asked) {
      const patch = follow(state, asked);
      const changed = Object.keys(patch).filter((name) => patch[name] !== state[name]);
      if (!changed.length) return;
      state = { ...state, ...patch };
      for (const listener of [...listeners]) listener(state, new Set(changed));
    },
    listen(listener) {
      listeners.add(listener);
    },
  };
}

/** Index of the record at a place, or -1 where the trace holds none. */
export function recordAt(data, { step, layer, branch, head }, run) {
  return data.index.findIndex(
    (r) =>
      r.run === run &&
      r.step === step &&
      r.layer === layer &&
      r.branch === branch &&
      r.head === head,
  );
}

/** The run whose records are shown for `run`: itself, or else the first that has any (named on the page). */
export function recordedRun(data, run) {
  if (data.runs[run]?.recorded) return run;
  return data.runs.findIndex((r) => r.recorded);
}

/** The run that a trace opens with: the usual budget, with compensation where it was run. */
export function openingRun(data) {
  const usual = data.runs.filter((r) => r.config.top_p === 0.9);
  return (usual.find((r) => r.config.compensate) ?? usual[0] ?? data.runs[0]).index;
}

// Where none is wished for: by the end clusters are things, in the first layers they are places.
const LAST = 1e6;

/** The recorded place nearest to a wanted one: same step and layer before same head and branch. */
export function nearestPlace(data, wanted, run) {
  let best = null;
  let bestCost = Infinity;
  for (const place of data.index) {
    if (place.run !== run) continue;
    const cost =
      1000 * Math.abs(place.step - (wanted.step ?? LAST)) +
      100 * Math.abs(place.layer - (wanted.layer ?? LAST)) +
      10 * (place.branch === (wanted.branch ?? place.branch) ? 0 : 1) +
      Math.abs(place.head - (wanted.head ?? 0));
    if (cost < bestCost) {
      bestCost = cost;
      best = place;
    }
  }
  return best;
}
