// A clip as a list of pictures, so that both clips are drawn by one clock and cannot drift apart.

const MAX_WIDTH = 640; // wider clips are scaled down to it: 81 frames then stay below 80 MB
const TRIES = 200;
const RETRY_MS = 50;

/**
 * Decode every frame of an MP4 by seeking to the middle of each. `onFrame(i)` is called as they come.
 * Frames not decoded yet are null; draw the nearest one.
 */
export function makeClip(bytes, count, onFrame, onFail) {
  const pictures = new Array(count).fill(null);
  const video = document.createElement("video");
  const url = URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
  const clip = { pictures, frameSeconds: 1 / 16, close };
  let closed = false;

  function close() {
    closed = true;
    URL.revokeObjectURL(url);
    video.removeAttribute("src");
    for (const picture of pictures) picture?.close();
    pictures.fill(null); // a drawing that was already asked for finds nothing
  }

  const once = (name) =>
    new Promise((done, fail) => {
      video.addEventListener(name, done, { once: true });
      video.addEventListener("error", () => fail(new Error("The clip can't be decoded.")), {
        once: true,
      });
    });

  async function decode() {
    video.muted = true;
    video.playsInline = true;
    video.preload = "auto";
    const ready = once("loadeddata");
    video.src = url;
    await ready;
    clip.frameSeconds = video.duration / count;
    const scale = Math.min(1, MAX_WIDTH / video.videoWidth);
    const size =
      scale < 1
        ? {
            resizeWidth: Math.round(video.videoWidth * scale),
            resizeHeight: Math.round(video.videoHeight * scale),
            resizeQuality: "high",
          }
        : {};
    for (let i = 0; i < count && !closed; i += 1) {
      const there = once("seeked");
      video.currentTime = (i + 0.5) * clip.frameSeconds;
      await there;
      const picture = await pictureOf(video, size);
      if (closed) picture.close();
      else {
        pictures[i] = picture;
        onFrame(i);
      }
    }
    video.removeAttribute("src");
    video.load();
  }

  decode().catch((error) => {
    if (!closed) onFail(error);
  });
  return clip;
}

/** The frame that a video shows. On a busy machine it can be there only after its seek is over. */
async function pictureOf(video, size) {
  for (let left = TRIES; ; left -= 1) {
    try {
      return await createImageBitmap(video, size);
    } catch (error) {
      if (error.name !== "InvalidStateError" || left === 0 || !video.src) throw error;
      await new Promise((done) => setTimeout(done, RETRY_MS));
    }
  }
}

/** The picture of a frame, or the nearest earlier one that is decoded, or null. */
export function pictureAt(clip, frame) {
  for (let i = Math.min(frame, clip.pictures.length - 1); i >= 0; i -= 1) {
    if (clip.pictures[i]) return clip.pictures[i];
  }
  return null;
}

/** Draw a picture to fill a canvas: small clips by whole pixels, so that they stay crisp. */
export function paint(context, picture) {
  const { width, height } = context.canvas;
  context.imageSmoothingEnabled = picture.width > width;
  context.drawImage(picture, 0, 0, width, height);
}
