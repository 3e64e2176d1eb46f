// The clips of the runs, decoded when first shown, and the one clock that moves them.

import { makeClip } from "./frames.js";

const OPEN_CLIPS = 2; // decoded clips of real models take tens of MB each

/**
 * The dense clip, and the sparse ones that were shown last. `onPicture` is called for each decoded
 * frame, `onFail` when a clip cannot be played.
 */
export function makeClips(data, onPicture, onFail) {
  const open = (bytes) => makeClip(bytes, data.frameCount, onPicture, onFail);
  const dense = open(data.dense.video);
  const sparse = new Map(); // the one used last is the last
  return {
    dense,
    /** The clip of run `index`. */
    sparse(index) {
      const clip = sparse.get(index) ?? open(data.runs[index].video);
      sparse.delete(index);
      sparse.set(index, clip);
      for (const [oldest, old] of sparse) {
        if (sparse.size <= OPEN_CLIPS) break;
        old.close();
        sparse.delete(oldest);
      }
      return clip;
    },
    close() {
      dense.close();
      sparse.forEach((clip) => clip.close());
    },
  };
}

/**
 * One clock for both clips: it steps the frame while the state is playing, and calls `onTick` on
 * each animation frame. It rests when nothing moves, until `wake`.
 */
export function makeClock({ data, store, clips }, onTick) {
  let isAwake = false;
  let closed = false;
  let last = null;
  let due = 0; // seconds of the clip that are not yet shown

  function tick(now) {
    if (closed) return;
    const { playing, speed, frame, compare } = store.get();
    onTick();
    if (playing) {
      due += last === null ? 0 : ((now - last) / 1000) * speed;
      const seconds = clips.dense.frameSeconds;
      const steps = Math.floor(due / seconds);
      due -= steps * seconds;
      if (steps) store.set({ frame: (frame + steps) % data.frameCount });
    }
    last = playing ? now : null;
    if (playing || compare === "blink") requestAnimationFrame(tick);
    else isAwake = false;
  }
  return {
    wake() {
      if (isAwake) return;
      isAwake = true;
      last = null;
      requestAnimationFrame(tick);
    },
    close() {
      closed = true;
    },
  };
}
