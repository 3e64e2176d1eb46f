// The keyboard: keys that work wherever the focus is, except in a field.

/** What the keys do, for the foot of the page. */
export const KEYS =
  "Keys: ← → frame, space play, [ ] step, ↑ ↓ layer (on the frames), h head, q k queries or keys, n p next or previous cluster, Esc unpin. On the sorted mask: arrows go from block to block, Enter zooms.";

const FIELDS = ["SELECT", "TEXTAREA", "INPUT"];

/** Act on the keys that reach `target`. Returns a function that stops that. */
export function listenToKeys(app, target) {
  function onKey(event) {
    const from = event.composedPath()[0];
    const tag = from.tagName ?? "";
    if (event.ctrlKey || event.metaKey || event.altKey || FIELDS.includes(tag)) return;
    const act = actionsAt(app, from, tag)[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }
  target.addEventListener("keydown", onKey);
  return () => target.removeEventListener("keydown", onKey);
}

function actionsAt(app, from, tag) {
  const { store, hasRecords } = app;
  const isButton = tag === "BUTTON" || from.getAttribute?.("role") === "button";
  const onFrames = from.closest?.("[data-keys=layers]");
  return {
    ArrowLeft: () => app.stepFrame(-1),
    ArrowRight: () => app.stepFrame(1),
    " ": !isButton && (() => store.set({ playing: !store.get().playing })),
    Escape: () => store.set({ cluster: null, hover: null, zoom: false }),
    ...(hasRecords && {
      "[": () => app.movePlace("step", -1),
      "]": () => app.movePlace("step", 1),
      h: () => app.nextHead(),
      q: () => store.set({ side: "q", cluster: null, hover: null }),
      k: () => store.set({ side: "k", cluster: null, hover: null }),
      n: () => walkClusters(app, 1),
      p: () => walkClusters(app, -1),
    }),
    ...(onFrames && {
      ArrowUp: () => app.movePlace("layer", -1),
      ArrowDown: () => app.movePlace("layer", 1),
    }),
  };
}

/** Pin the next cluster that holds a token, from the largest down. */
function walkClusters({ store, record }, by) {
  const { side, cluster } = store.get();
  const { sizes } = record()[side];
  const bySize = [...sizes.keys()].filter((c) => sizes[c]).sort((a, b) => sizes[b] - sizes[a]);
  const start = by > 0 ? -1 : 0;
  const at = cluster === null ? start : bySize.indexOf(cluster);
  store.set({ cluster: bySize[(at + by + bySize.length) % bySize.length], hover: null });
}
