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
  return (state, { x, lines }) => {
    Object.entries(lines).forEach(([name, y], i) => {
      plot.line(name, x, y, { colour: INKS[i % INKS.length], label: name, dash: i >= INKS.length });
      if (x.length === 1 || y.some((v, k) => v !== null && (y[k - 1] ?? null) === null && (y[k + 1] ?? null) === null))
        plot.dots(`${name} dots`, x, y, { colour: INKS[i % INKS.length] });
    });
    ui.note(inWords(spec, { x, lines }));
  };
}

// Where the lines end, and what cannot be seen of them.
export function inWords(spec, { x, lines }) {
  const short = (value) => (value === null ? "not finite" : Number(value.toPrecision(3)));
  const those = (found) => Object.keys(lines).filter((name) => lines[name].some(found));
  const gone = those((v) => v === null), away = those((v) => v !== null && (v < spec.y[0] || v > spec.y[1]));
  const ends = Object.entries(lines).map(([name, y]) => `${name}: ${short(y.at(-1))}`).join("; ");
  return [`At ${spec.xlabel} ${short(x.at(-1))}, ${ends}.`,
    gone.length && `Where a line breaks off, ${gone.join(" and ")} is not a finite number.`,
    away.length && `Beyond the axis in places: ${away.join(", ")}.`].filter(Boolean).join(" ");
}
