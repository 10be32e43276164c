// One inner step on ½(φ − 3)², from every start θ.
import { linspace } from "./core.js";

export function compute(spec, { lr }) {
  const start = linspace(-1, 7, 81);
  const loss = (phi) => 0.5 * (phi - 3) ** 2;
  return { start, before: start.map(loss), after: start.map((theta) => loss(theta - lr * (theta - 3))) };
}

export function build(ui) {
  const plot = ui.plot({ label: "One inner step", x: [-1, 7], y: [0, 8], xlabel: "θ", ylabel: "loss", height: 0.5 });
  ui.slider({ key: "lr", label: "inner step size α", min: 0, max: 2.5, step: 0.05 });
  return ({ lr }, { start, before, after }) => {
    plot.line("before", start, before, { colour: "grey", label: "before" });
    plot.line("after", start, after, { colour: "blue", label: "after one step" });
    ui.note(`One step multiplies the distance to the optimum by ${(1 - lr).toFixed(2).replace("-", "−")}.`);
  };
}
