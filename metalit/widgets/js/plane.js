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
export function heights(Z, count = 14) {
  const values = Z.flat().filter(Number.isFinite);
  const low = Math.min(...values), high = Math.max(...values);
  const flat = high - low <= 1e-9 * Math.abs(high);          // what is left of a flat surface is rounding
  return flat ? [] : Array.from({ length: count }, (_, i) => low + (high - low) * ((i + 0.8) / count) ** 2);
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

// Angles moved apart as little as is needed for names not to overlap: words are wide, so names above and below a point
// need more room than names at its sides. `size` is larger where the plot is smaller.
export function spread(angles, size = 1) {
  const order = angles.map((_, i) => i).sort((i, j) => angles[i] - angles[j]);
  const found = [...angles];
  const room = size * Math.min(1, 6 / (size * order.length * 0.5));
  const gap = (i, j) => room * (0.18 + 0.32 * Math.abs(Math.sin(found[i]) + Math.sin(found[j])) / 2);
  for (let round = 0; order.length > 1 && round < 300; round++) {
    order.forEach((i, k) => {
      const last = k + 1 === order.length, j = order[last ? 0 : k + 1];
      const missing = gap(i, j) - (found[j] + (last ? 2 * Math.PI : 0) - found[i]);
      if (missing <= 0) return;
      found[i] -= missing / 4;
      found[j] += missing / 4;
    });
  }
  return found;
}
