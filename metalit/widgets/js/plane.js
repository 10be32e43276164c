// Small helpers of the figures in two parameters.
import { shown } from "./core.js";

// A number with about three digits that count.
export function fixedDigits(value) {
  return shown(value, Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : Math.abs(value) >= 1 ? 2 : 3);
}

// A gradient so short has no direction.
export const enough = (length) => Number.isFinite(length) && length > 1e-12;

export function angleBetween([a, b], [c, d]) {
  return Math.abs(Math.atan2(a * d - b * c, a * c + b * d)) * (180 / Math.PI);
}

export function inWords(names) {
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}

// The sliders that a figure needs: λ and the margin for those of its meta-losses that have one, and for a reader's own.
export function knobs(ui, choices, most, step) {
  const has = (...names) => choices.some(({ key, colour }) => names.includes(key) || colour === "currentColor");
  if (has("norm", "triplet", "conml", "written_curvature"))
    ui.slider({ key: "weight", label: "factor λ of second terms", min: 0, max: most, step });
  if (has("triplet", "written_contrastive"))
    ui.slider({ key: "margin", label: "margin m (triplet, §4.2)", min: 0.1, max: 3, step: 0.1, digits: 1 });
}

// Levels for contours, closer together where the surface is low. The lowest is not so near the ground that the coarse
// grid shows.
export function heights(Z, count = 15) {
  const values = Z.flat().filter(Number.isFinite);
  const low = Math.min(...values), high = Math.max(...values);
  const flat = high - low <= 1e-9 * Math.abs(high);          // what is left of a flat surface is rounding
  return flat ? [] : Array.from({ length: count }, (_, i) => low + (high - low) * ((i + 0.6) / count) ** 2);
}

// Where ½(φ − s)ᵀA(φ − s) has a height: the xs and the ys. The Cholesky factor of A turns the bowl into a round one.
export function ellipse([xx, xy, yy], [x, y], height) {
  const a = Math.sqrt(xx), b = xy / a, c = Math.sqrt(yy - b * b), radius = Math.sqrt(2 * height);
  const angles = Array.from({ length: 49 }, (_, i) => (i * Math.PI) / 24);
  const points = angles.map((angle) => {
    const v = (radius * Math.sin(angle)) / c;
    return [x + (radius * Math.cos(angle) - b * v) / a, y + v];
  });
  return [points.map((point) => point[0]), points.map((point) => point[1])];
}

const ROUND = Array.from({ length: 16 }, (_, i) => (i * Math.PI) / 8 + Math.PI);   // beginning at the left

// The middles of boxes [width, height] beside points, where they cover no mark and none of the boxes before them. Where
// all places are taken, the one that covers least. All in pixels; `inside` is the window of the plot.
export function places(points, marks, [width, height], inside) {
  const taken = [];
  const overlap = (a, b, across, down) => Math.abs(a[0] - b[0]) < across && Math.abs(a[1] - b[1]) < down;
  const cost = ([x, y]) => {
    const out = x - width / 2 < inside.x || x + width / 2 > inside.x + inside.width
      || y - height / 2 < inside.y || y + height / 2 > inside.y + inside.height;
    return 1000 * out + 100 * taken.filter((other) => overlap([x, y], other, width, height)).length
      + marks.filter((mark) => overlap([x, y], mark, width / 2 + 5, height / 2 + 5)).length;
  };
  return points.map(([x, y]) => {
    const around = [1, 1.6, 2.4, 3.4].flatMap((far) => ROUND.map((angle) =>
      [x + far * (width / 2 + 6) * Math.cos(angle), y + far * (height / 2 + 6) * Math.sin(angle)]));
    const costs = around.map(cost);
    taken.push(around[costs.indexOf(Math.min(...costs))]);
    return taken.at(-1);
  });
}
