// Lines over sliders. Only torch knows the numbers: every position of the sliders was computed beforehand.

export function compute() {
  return null;
}

const INKS = ["blue", "orange", "green", "red", "purple", "sky"];

// Whether the x axis counts something, such as tasks or steps: a dozen at most, from a whole number to another.
const counts = ({ x }) => x.every(Number.isInteger) && x[1] - x[0] >= 2 && x[1] - x[0] <= 12 && x[0] >= 1;

export function build(ui, spec) {
  const plot = ui.plot({ label: spec.title, x: spec.x, y: spec.y, xlabel: spec.xlabel, ylabel: spec.ylabel,
                         log: spec.log ? "y" : "", height: 0.5, whole: counts(spec) });
  for (const { key, label, values } of spec.controls) {
    if (values.length !== 2 && values.every((value) => typeof value === "number")) ui.slider({ key, label, values });
    else ui.choice({ key, label, options: values.map((value) => [value, String(value)]) });
  }
  let pointer = null;
  plot.watch((at) => { pointer = at; ui.redraw(); });
  return (state, picture) => {
    const { x, lines, bands = {}, mark } = picture;
    if (mark) plot.line("mark", [mark[0], mark[0]], plot.y, { colour: "grey", width: 1.5, dash: "2 3", label: mark[1] });
    Object.entries(lines).forEach(([name, y], i) => {
      const colour = INKS[i % INKS.length];
      if (bands[name]) plot.band(`${name} band`, x, ...sides(y, bands[name]), { colour });
      plot.line(name, x, y, { colour, label: bands[name] ? `${name} ± 95 %` : name, dash: i >= INKS.length });
      if (x.length === 1 || y.some((v, k) => v !== null && (y[k - 1] ?? null) === null && (y[k + 1] ?? null) === null))
        plot.dots(`${name} dots`, x, y, { colour });
      const k = spec.lowest ? lowest(y) : -1;
      if (k >= 0) plot.dots(`${name} lowest`, [x[k]], [y[k]], { colour, radius: 5 });
    });
    if (spec.drag) dragged(ui, plot, spec, state, picture);
    if (pointer !== null) readOut(plot, spec, picture, pointer);
    ui.note(pointer === null ? inWords(spec, picture) : valuesAt(spec, picture, pointer));
  };
}

// The lower and the upper end of intervals.
export function sides(y, half) {
  const end = (sign) => y.map((v, k) => (v === null || half[k] === null ? null : v + sign * half[k]));
  return [end(-1), end(1)];
}

// The place of the least value of a line, or −1 where it only falls or only rises: an end of the axis is no lowest place.
export function lowest(y) {
  const k = y.reduce((best, v, i) => (v !== null && (best < 0 || v < y[best]) ? i : best), -1);
  return k > 0 && k < y.length - 1 ? k : -1;
}

// A control that is a place on the axis has a handle there, on the first line.
function dragged(ui, plot, { drag, controls }, state, { x, lines }) {
  const { label, values } = controls.find(({ key }) => key === drag), here = state[drag];
  const height = Object.values(lines)[0][nearest(x, here)];
  if (height === null) return;
  plot.handle("drag", here, height, { label, legend: label, move: (to) => ui.set({ [drag]: snapped(values, here, to) }) });
}

// The value next to where the handle was moved to; a key moves it by one value at least.
export function snapped(values, from, to) {
  const found = values[nearest(values, to)];
  if (found !== from || Math.abs(to - from) < 1e-12) return found;
  const beyond = values.filter((value) => (value - from) * (to - from) > 0);
  return beyond.length ? beyond[nearest(beyond, to)] : from;
}

const short = (value) => (value === null ? "not finite" : Number(value.toPrecision(3)));

// The place on the axis that is next to the pointer.
export const nearest = (x, at) => x.reduce((best, v, i) => (Math.abs(v - at) < Math.abs(x[best] - at) ? i : best), 0);

// What the lines are where the pointer is: beside it, with a dot on each.
function readOut(plot, spec, { x, lines }, at) {
  const k = nearest(x, at), right = plot.px(x[k]) > plot.box.x + plot.box.width / 2;
  plot.line("pointer", [x[k], x[k]], plot.y, { colour: "grey", width: 1 });
  const look = { anchor: right ? "end" : "start", dx: right ? -6 : 6 }, top = plot.y[1];
  plot.text("pointer x", x[k], top, String(short(x[k])), { ...look, dy: 10 });
  Object.entries(lines).forEach(([name, y], i) => {
    const colour = INKS[i % INKS.length];
    if (y[k] !== null) plot.dots(`pointer ${name}`, [x[k]], [y[k]], { colour, radius: 4 });
    plot.text(`pointer value ${name}`, x[k], top, `${name} ${short(y[k])}`, { ...look, colour, dy: 24 + 14 * i });
  });
}

export function valuesAt(spec, { x, lines }, at) {
  const k = nearest(x, at);
  return `At ${spec.xlabel} ${short(x[k])}, ${Object.entries(lines).map(([name, y]) => `${name}: ${short(y[k])}`).join("; ")}.`;
}

// Where the lines end, or are lowest, and what cannot be seen of them.
export function inWords(spec, { x, lines }) {
  const those = (found) => Object.keys(lines).filter((name) => lines[name].some(found));
  if (!those((v) => v !== null).length) return "There is nothing to draw: not one of these numbers is finite.";
  const gone = those((v) => v === null), low = spec.log ? those((v) => v !== null && v <= 0) : [];
  const away = those((v) => v !== null && (v < spec.y[0] || v > spec.y[1]) && !(spec.log && v <= 0));
  const ends = Object.entries(lines).map(([name, y]) => `${name}: ${short(y.at(-1))}`).join("; ");
  const least = Object.entries(lines).map(([name, y]) => [name, lowest(y)]).filter(([, k]) => k >= 0)
    .map(([name, k]) => `${name} at ${short(x[k])}`).join("; ");
  return [spec.lowest ? `Lowest: ${least || "nowhere"}.` : `At ${spec.xlabel} ${short(x.at(-1))}, ${ends}.`,
    gone.length && `Where a line breaks off, ${gone.join(" and ")} is not a finite number.`,
    low.length && `A logarithmic axis shows no number that is not above 0: ${low.join(", ")} has some.`,
    away.length && `Beyond the axis in places: ${away.join(", ")}.`].filter(Boolean).join(" ");
}
