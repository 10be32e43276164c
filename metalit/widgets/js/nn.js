// A small neural network in float64: what it computes, the gradient of its squared error, and gradient descent on it.
// A network is { activation: "relu" | "tanh", layers: [{ weight, bias, inputs, outputs }] }, weights row by row as in
// torch. Inputs and outputs are tables of examples, one row after another in one array.

export const ACTIVATIONS = {
  relu: { value: (z) => (z > 0 ? z : 0), slope: (z) => (z > 0 ? 1 : 0), bend: () => 0 },   // slope 0 at 0, as in torch
  tanh: { value: Math.tanh, slope: (z) => 1 - Math.tanh(z) ** 2, bend: (z) => -2 * Math.tanh(z) * (1 - Math.tanh(z) ** 2) },
};

// ReLU as torch does it: a NaN stays one.
const activate = (kind, z) => (Number.isNaN(z) ? NaN : ACTIVATIONS[kind].value(z));

export function affine({ weight, bias, inputs, outputs }, x, count) {
  const z = new Float64Array(count * outputs);
  for (let n = 0; n < count; n++) {
    for (let o = 0; o < outputs; o++) {
      let sum = bias[o];
      for (let i = 0; i < inputs; i++) sum += weight[o * inputs + i] * x[n * inputs + i];
      z[n * outputs + o] = sum;
    }
  }
  return z;
}

// What every layer reads, and what it gives before the activation; the last `z` is the network's output.
export function mlpTrace({ activation, layers }, x, count) {
  const read = [Float64Array.from(x)], gave = [];
  layers.forEach((layer, l) => {
    gave.push(affine(layer, read[l], count));
    if (l + 1 < layers.length) read.push(gave[l].map((z) => activate(activation, z)));
  });
  return { read, gave };
}

export function mlpOutput(net, x, count = x.length / net.layers[0].inputs) {
  return mlpTrace(net, x, count).gave.at(-1);
}

export function meanSquare(output, y) {
  let sum = 0;
  for (let i = 0; i < y.length; i++) sum += (output[i] - y[i]) ** 2;
  return sum / y.length;
}

// The gradient of the mean squared error over all examples: one { weight, bias } per layer, and the error itself.
export function mlpGradient(net, x, y, count = x.length / net.layers[0].inputs) {
  const { read, gave } = mlpTrace(net, x, count);
  const { slope } = ACTIVATIONS[net.activation];
  const gradient = [];
  let delta = gave.at(-1).map((output, i) => (2 * (output - y[i])) / y.length);
  for (let l = net.layers.length - 1; l >= 0; l--) {
    gradient[l] = layerGradient(net.layers[l], read[l], delta, count);
    if (l > 0) delta = backwards(net.layers[l], delta, count).map((d, i) => d * slope(gave[l - 1][i]));
  }
  return { loss: meanSquare(gave.at(-1), y), gradient };
}

function layerGradient({ inputs, outputs }, x, delta, count) {
  const weight = new Float64Array(outputs * inputs), bias = new Float64Array(outputs);
  for (let n = 0; n < count; n++) {
    for (let o = 0; o < outputs; o++) {
      const d = delta[n * outputs + o];
      bias[o] += d;
      for (let i = 0; i < inputs; i++) weight[o * inputs + i] += d * x[n * inputs + i];
    }
  }
  return { weight, bias };
}

// Through a layer from its outputs to its inputs: the transpose of its weights.
function backwards({ weight, inputs, outputs }, delta, count) {
  const back = new Float64Array(count * inputs);
  for (let n = 0; n < count; n++) {
    for (let o = 0; o < outputs; o++) {
      const d = delta[n * outputs + o];
      for (let i = 0; i < inputs; i++) back[n * inputs + i] += weight[o * inputs + i] * d;
    }
  }
  return back;
}

// The Hessian of the mean squared error, times a vector `v` that is laid out as a gradient: how the gradient changes where
// the weights go along v. Every quantity of `mlpGradient` is followed by its rate of change (Pearlmutter 1994).
export function mlpHessianProduct(net, x, y, v, count = x.length / net.layers[0].inputs) {
  const { read, gave } = mlpTrace(net, x, count), { slope, bend } = ACTIVATIONS[net.activation], end = net.layers.length - 1;
  const moved = [new Float64Array(x.length)], rates = [];      // the rates of `read` and `gave`
  net.layers.forEach((layer, l) => {
    const along = affine({ ...layer, ...v[l] }, read[l], count), silent = { ...layer, bias: new Float64Array(layer.outputs) };
    rates.push(affine(silent, moved[l], count).map((rate, i) => rate + along[i]));
    if (l < end) moved.push(rates[l].map((rate, i) => rate * slope(gave[l][i])));
  });
  const product = [];
  let delta = gave[end].map((output, i) => (2 * (output - y[i])) / y.length), turn = rates[end].map((rate) => (2 * rate) / y.length);
  for (let l = end; l >= 0; l--) {
    const layer = net.layers[l];
    product[l] = sumOf(layerGradient(layer, read[l], turn, count), layerWeight(layer, moved[l], delta, count));
    if (l === 0) break;
    const [down, tilt] = [backwards(layer, delta, count), backwards(layer, turn, count)];
    const through = backwards({ ...layer, weight: v[l].weight }, delta, count), z = gave[l - 1], rate = rates[l - 1];
    turn = tilt.map((t, i) => (t + through[i]) * slope(z[i]) + down[i] * bend(z[i]) * rate[i]);
    delta = down.map((d, i) => d * slope(z[i]));
  }
  return product;
}

const layerWeight = (layer, x, delta, count) =>
  ({ weight: layerGradient(layer, x, delta, count).weight, bias: new Float64Array(layer.outputs) });

const sumOf = (a, b) => ({ weight: a.weight.map((w, i) => w + b.weight[i]), bias: a.bias.map((w, i) => w + b.bias[i]) });

// One step of gradient descent, as a new network.
export function sgdStep(net, gradient, lr) {
  const stepped = (values, slopes) => values.map((value, i) => value - lr * slopes[i]);
  return { ...net, layers: net.layers.map((layer, l) => ({ ...layer, weight: stepped(layer.weight, gradient[l].weight),
                                                             bias: stepped(layer.bias, gradient[l].bias) })) };
}

// The inner loop: the networks after 0 … `steps` steps on the examples (x, y).
export function innerPath(net, x, y, lr, steps) {
  const path = [net];
  for (let k = 0; k < steps; k++) path.push(sgdStep(path[k], mlpGradient(path[k], x, y).gradient, lr));
  return path;
}
