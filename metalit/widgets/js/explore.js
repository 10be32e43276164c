// Lines over sliders. Only torch knows the numbers: every position of the sliders was computed beforehand.
export function compute() {
  return null;
}

const INKS = ["blue", "orange", "green", "red", "purple", "sky"];

export function build(ui, spec) {
  const plot = ui.plot({ label: spec.title, x: spec.x, y: spec.y, xlabel: spec.xlabel, ylabel: spec.ylabel,
                         log: spec.log ? "y" : "", height: 0.5 });
  for (const { key, label, values } of spec.controls) {
    if (values.length !== 2 && values.every((value) => typeof value === "number")) ui.slider({ key, label, values });
    else ui.choice({ key, label, options: values.map((value) => [value, String(value)]) });
  }
  let now = null;
  plot.watch((at) => now && ui.note(at === null ? inWords(spec, now) : valuesAt(spec, now, at)));
  return (state, { x, lines }) => {
    now = { x, lines };
    Object.entries(lines).forEach(([name, y], i) => {
      plot.line(name, x, y, { colour: INKS[i % INKS.length], label: name, dash: i >= INKS.length });
      if (x.length === 1 || y.some((v, k) => v !== null && (y[k - 1] ?? null) === null && (y[k + 1] ?? null) === null))
        plot.dots(`${name} dots`, x, y, { colour: INKS[i % INKS.length] });
      const k = spec.lowest ? lowest(y) : -1;
      if (k >= 0) plot.dots(`${name} lowest`, [x[k]], [y[k]], { colour: INKS[i % INKS.length], radius: 5 });
    });
    ui.note(inWords(spec, { x, lines }));
  };
}

// The place of the least value of a line, or −1 where it only falls or only rises: an end of the axis is no lowest place.
export function lowest(y) {
  const k = y.reduce((best, v, i) => (v !== null && (best < 0 || v < y[best]) ? i : best), -1);
  return k > 0 && k < y.length - 1 ? k : -1;
}

const short = (value) => (value === null ? "not finite" : Number(value.toPrecision(3)));

// What the lines are where the pointer is.
export function valuesAt(spec, { x, lines }, at) {
  const k = x.reduce((best, v, i) => (Math.abs(v - at) < Math.abs(x[best] - at) ? i : best), 0);
  return `At ${spec.xlabel} ${short(x[k])}, ${Object.entries(lines).map(([name, y]) => `${name}: ${short(y[k])}`).join("; ")}.`;
}

// Where the lines end, or are lowest, and what cannot be seen of them.
export function inWords(spec, { x, lines }) {
  const those = (found) => Object.keys(lines).filter((name) => lines[name].some(found));
  const gone = those((v) => v === null), away = those((v) => v !== null && (v < spec.y[0] || v > spec.y[1]));
  const ends = Object.entries(lines).map(([name, y]) => `${name}: ${short(y.at(-1))}`).join("; ");
  const least = Object.entries(lines).map(([name, y]) => [name, lowest(y)]).filter(([, k]) => k >= 0)
    .map(([name, k]) => `${name} at ${short(x[k])}`).join("; ");
  return [spec.lowest ? `Lowest: ${least || "nowhere"}.` : `At ${spec.xlabel} ${short(x.at(-1))}, ${ends}.`,
    gone.length && `Where a line breaks off, ${gone.join(" and ")} is not a finite number.`,
    away.length && `Beyond the axis in places: ${away.join(", ")}.`].filter(Boolean).join(" ");
}
