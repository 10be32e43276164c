// Lines over sliders. Only torch knows the numbers: every position of the sliders was computed beforehand.
export function compute() {
  return null;
}

const INKS = ["blue", "orange", "green", "red", "purple", "sky"];

export function build(ui, spec) {
  const plot = ui.plot({ label: spec.title, x: spec.x, y: spec.y, xlabel: spec.xlabel, ylabel: spec.ylabel,
                         log: spec.log ? "y" : "", height: 0.5 });
  for (const { key, label, values } of spec.controls) {
    if (values.every((value) => typeof value === "number")) ui.slider({ key, label, values });
    else ui.select({ key, label, options: values.map((value) => [value, String(value)]) });
  }
  return (state, { x, lines }) => {
    const gone = [], away = [];
    Object.entries(lines).forEach(([name, y], i) => {
      plot.line(name, x, y, { colour: INKS[i % INKS.length], label: name, dash: i >= INKS.length });
      if (x.length === 1 || y.some((v, k) => v !== null && (y[k - 1] ?? null) === null && (y[k + 1] ?? null) === null))
        plot.dots(`${name} dots`, x, y, { colour: INKS[i % INKS.length] });
      if (y.includes(null)) gone.push(name);
      if (y.some((v) => v !== null && (v < spec.y[0] || v > spec.y[1]))) away.push(name);
    });
    ui.note([`At ${spec.xlabel} ${inShort(x.at(-1))}, ${Object.entries(lines)
      .map(([name, y]) => `${name}: ${inShort(y.at(-1))}`).join("; ")}.`,
      gone.length && `Where a line breaks off, ${gone.join(" and ")} is not a finite number.`,
      away.length && `Beyond the axis in places: ${away.join(", ")}.`].filter(Boolean).join(" "));
  };
}

const inShort = (value) => (value === null ? "not finite" : Number(value.toPrecision(3)));
