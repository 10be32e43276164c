// The quadratic bed in two dimensions: every meta-loss of the figures, with its gradient, in closed form.
//
// A task is { A, s, C, q }: support loss ½(φ − s)ᵀA(φ − s), query loss ½(φ − q)ᵀC(φ − q). Gradient descent is then an
// affine map of the start, φ_K = Pθ + c with P = (I − αA)^K, and all that follows is written with P and c.
// All matrices here are symmetric, and are kept as [xx, xy, yy]; points are [x, y].

const IDENTITY = [1, 0, 1];

export const plus = (a, b, weight = 1) => a.map((value, i) => value + weight * b[i]);
export const scaled = (a, factor) => a.map((value) => factor * value);
export const dot = (a, b) => a[0] * b[0] + a[1] * b[1];
export const times = ([xx, xy, yy], [x, y]) => [xx * x + xy * y, xy * x + yy * y];
export const average = (list) => scaled(list.reduce((a, b) => plus(a, b)), 1 / list.length);

// A product that is symmetric itself, because the two matrices commute.
const product = ([a, b, d], [e, f, h]) => [a * e + b * f, a * f + b * h, b * f + d * h];

// P·C·P, symmetric again.
function between(P, C) {
  const [left, right] = [times(P, times(C, [P[0], P[1]])), times(P, times(C, [P[1], P[2]]))];
  return [left[0], left[1], right[1]];
}

export function solved([xx, xy, yy], [x, y]) {
  const determinant = xx * yy - xy * xy;
  return [(yy * x - xy * y) / determinant, (xx * y - xy * x) / determinant];
}

export function largestEigenvalue([xx, xy, yy]) {
  return (xx + yy) / 2 + Math.hypot((xx - yy) / 2, xy);
}

// The step size beyond which descent on a bowl runs away: 2/λ.
export const edgeOf = (task) => 2 / largestEigenvalue(task.A);

// φ_K as an affine map of θ, for descent on a bowl: φ_K = s + (I − αA)^K (θ − s).
function adaptedMap(A, s, lr, steps) {
  const M = plus(IDENTITY, A, -lr);
  let P = IDENTITY;
  for (let k = 0; k < steps; k++) P = product(P, M);
  return { P, c: plus(s, times(P, s), -1) };
}

const at = ({ P, c }, theta) => plus(times(P, theta), c);

// φ₀ … φ_K of one task.
export function innerPath({ A, s }, theta, lr, steps) {
  const points = [theta];
  for (let k = 0; k < steps; k++) points.push(plus(points[k], times(A, plus(points[k], s, -1)), -lr));
  return points;
}

// The two halves of a support set of two rows, x = chol(A)ᵀ: bowls of rank one with the same optimum.
function halfBowls([xx, xy, yy]) {
  return [[xx, xy, (xy * xy) / xx], [0, 0, yy - (xy * xy) / xx]];
}

// ---------------------------------------------------------------------------------------------- terms

// A term is a function of θ that returns [value, gradient in x, gradient in y].
const together = (terms) => (theta) => average(terms.map((term) => term(theta)));
const sum = (one, weight, other) => (theta) => plus(one(theta), other(theta), weight);

// ℓ_Q(φ). The slope goes back through P, or, to first order, through the identity.
function queryTerm({ C, q }, map, back = map.P) {
  return (theta) => {
    const gap = plus(at(map, theta), q, -1), slope = times(C, gap);
    return [dot(gap, slope) / 2, ...times(back, slope)];
  };
}

// ½‖F·(φ − centre)‖², with the slope P·F·F·(φ − centre).
function squareTerm(F, centre, map) {
  return (theta) => {
    const inside = times(F, plus(at(map, theta), centre, -1));
    return [dot(inside, inside) / 2, ...times(map.P, times(F, inside))];
  };
}

// The distance √(factor · vᵀGv) of two adapted points, v = φ − φ′. At distance 0 its slope is 0.
function distanceTerm(one, other, G, factor) {
  const P = plus(one.P, other.P, -1);
  return (theta) => {
    const v = plus(at(one, theta), at(other, theta), -1), pulled = times(G, v);
    const distance = Math.sqrt(Math.max(0, factor * dot(v, pulled)));
    return [distance, ...(distance > 0 ? scaled(times(P, pulled), factor / distance) : [0, 0])];
  };
}

// 1 − cos of the angle between two adapted points, seen from the origin.
function cosineTerm(one, other) {
  return (theta) => {
    const [u, v] = [at(one, theta), at(other, theta)];
    const lengths = [u, v].map((w) => Math.max(Math.hypot(...w), 1e-12));
    const [a, b] = [scaled(u, 1 / lengths[0]), scaled(v, 1 / lengths[1])], cosine = dot(a, b);
    const slope = plus(times(one.P, scaled(plus(b, a, -cosine), 1 / lengths[0])),
                       times(other.P, scaled(plus(a, b, -cosine), 1 / lengths[1])));
    return [1 - cosine, ...scaled(slope, -1)];
  };
}

// max(0, margin + inner − outer).
function hingeTerm(margin, inner, outer) {
  return (theta) => {
    const open = plus(inner(theta), outer(theta), -1);
    open[0] += margin;
    return open[0] > 0 ? open : [0, 0, 0];
  };
}

const pairs = (list, make) =>
  list.flatMap((one, i) => list.flatMap((other, j) => (i === j ? [] : [make(one, other, i)])));

// ---------------------------------------------------------------------------------------------- meta-losses

const maps = ({ tasks, lr }, steps) => tasks.map(({ A, s }) => adaptedMap(A, s, lr, steps));

const afterwards = (bed, steps = bed.steps) =>
  together(maps(bed, steps).map((map, i) => queryTerm(bed.tasks[i], map)));

const META_LOSSES = {
  maml: (bed) => afterwards(bed),
  fomaml: (bed) => together(maps(bed, bed.steps).map((map, i) => queryTerm(bed.tasks[i], map, IDENTITY))),
  reptile: (bed) => together(maps(bed, bed.steps).map((map) => (theta) => {
    const gap = plus(theta, at(map, theta), -1);             // φ_K is held constant, so the slope is θ − φ_K
    return [dot(gap, gap) / 2, ...gap];
  })),
  norm: (bed) => sum(afterwards(bed), bed.weight,
    together(maps(bed, bed.steps).map((map, i) => squareTerm(bed.tasks[i].C, bed.tasks[i].q, map)))),
  triplet: (bed) => sum(afterwards(bed), bed.weight, tripletTerm(bed)),
  conml: (bed) => sum(afterwards(bed), bed.weight, contrastTerm(bed)),
  // ‖θ − θ′‖² = α²‖A(θ − s)‖², twice the half square of which no step has been taken.
  written_reptile: ({ tasks, lr }) => {
    const none = { P: IDENTITY, c: [0, 0] };
    const inside = together(tasks.map(({ A, s }) => squareTerm(A, s, none)));
    return (theta) => scaled(inside(theta), 2 * lr * lr);
  },
  written_contrastive: (bed) => {
    const distance = together(pairs(maps(bed, 1), (one, other) => distanceTerm(one, other, IDENTITY, 1)));
    return (theta) => plus(distance(theta), [bed.margin, 0, 0]);
  },
  written_curvature: (bed) => sum(afterwards(bed, 1), bed.weight,
    together(maps(bed, 1).map((map, i) => metaGradientTerm(bed.tasks[i], map)))),
};

// ½‖P·C·(φ − q)‖²: half the squared meta-gradient.
function metaGradientTerm({ C, q }, map) {
  return (theta) => {
    const inside = times(map.P, times(C, plus(at(map, theta), q, -1)));
    return [dot(inside, inside) / 2, ...times(map.P, times(C, times(map.P, inside)))];
  };
}

// Distances are root mean squares of predictions on the first task's two query inputs X, and XᵀX = C.
function tripletTerm(bed) {
  const whole = maps(bed, bed.steps), G = bed.tasks[0].C;
  const within = bed.tasks.map(({ A, s }) => {
    const [one, other] = halfBowls(A).map((half) => adaptedMap(half, s, bed.lr, bed.steps));
    return distanceTerm(one, other, G, 0.5);
  });
  return together(pairs(whole, (one, other, i) => hingeTerm(bed.margin, within[i], distanceTerm(one, other, G, 0.5))));
}

function contrastTerm(bed) {
  const support = maps(bed, bed.steps);
  const both = bed.tasks.map(({ A, s, C, q }) => {
    const sumOf = plus(A, C);
    return adaptedMap(sumOf, solved(sumOf, plus(times(A, s), times(C, q))), bed.lr, bed.steps);
  });
  const inside = together(support.map((map, i) => cosineTerm(map, both[i])));
  return sum(inside, -1, together(pairs(both, cosineTerm)));
}

export const META_LOSS_KEYS = Object.keys(META_LOSSES);

// A meta-loss as a function of θ that returns [value, gradient in x, gradient in y]. A bed is
// { tasks, lr, steps, weight, margin }.
export const metaLoss = (key, bed) => META_LOSSES[key](bed);

// ---------------------------------------------------------------------------------------------- pictures

// Values on the grid of a figure: Z[j][i] at (xs[i], xs[j]).
export function surfaceOf(term, xs) {
  return xs.map((y) => xs.map((x) => term([x, y])[0]));
}

// The start with the least error after adaptation: mean(P·C·P) θ = mean(P·C·(q − c)).
export function bestStart(bed) {
  const found = maps(bed, bed.steps);
  const H = average(found.map(({ P }, i) => between(P, bed.tasks[i].C)));
  const b = average(found.map(({ P, c }, i) => times(P, times(bed.tasks[i].C, plus(bed.tasks[i].q, c, -1)))));
  return solved(H, b);
}

// Plain descent on a meta-loss: θ₀ … θ_N.
export function outerPath(term, theta, lr, count) {
  const points = [theta];
  for (let n = 0; n < count; n++) points.push(plus(points[n], term(points[n]).slice(1), -lr));
  return points;
}
