// The list of views, in the page's order. To add a view, write its file and add its entry here.
//
// `make(app)` returns a view: `node`, and any of these:
//   update(state, changed)  the state has changed in the names of the set `changed`
//   draw()                  size or theme has changed: draw everything anew
//   drawClips()             another frame of a clip is decoded
//   tick()                  the clock runs: called on each animation frame
//   failClips(text)         a clip cannot be played; `text` says so
//   summarised(state)       the density of every recorded call is known at every budget
//   say(text)               a notice about the budget in a sentence; null hides it
//   picture()               what a picture of it holds, as `makeSave` takes it; `chart`, its SVG element
//   liveSlot                where the panel of a run that measures a budget goes
//   playSorting()           the mask goes from token order to sorted
//   startTour(step, keepSelection)
//   close()                 another trace takes the place of this one

import { makeClusters } from "./clusters.js";
import { makeCompare } from "./compare.js";
import { makeGain } from "./gain.js";
import { makeHeader } from "./header.js";
import { makeMasks } from "./masks.js";
import { makePlaceBar } from "./place.js";
import { makeTour } from "./tour.js";
import { makeTradeoff } from "./tradeoff.js";

/**
 * `name` is what links, slides and the tour call a view. `needsRecords`: it is left out where a trace
 * holds no recorded clusters. `isSlide`: it can stand on a slide alone (`?embed=1&view=NAME`), and
 * `besideSlide(view, isPresented)` says whether it also stands on the slide of another view.
 */
export const VIEWS = [
  { name: "head", make: makeHeader, besideSlide: ({ name }, isPresented) => isPresented && name === "compare" },
  { name: "compare", make: makeCompare, isSlide: true },
  {
    name: "place",
    make: makePlaceBar,
    needsRecords: true,
    besideSlide: ({ needsRecords }) => needsRecords,
  },
  { name: "clusters", make: makeClusters, needsRecords: true, isSlide: true },
  { name: "masks", make: makeMasks, needsRecords: true, isSlide: true },
  { name: "gain", make: makeGain, isSlide: true },
  { name: "tradeoff", make: makeTradeoff, isSlide: true },
  { name: "tour", make: makeTour, besideSlide: () => true },
];
