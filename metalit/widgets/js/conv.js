// The strided network of four convolutions in float64: what it computes, its gradient, and gradient descent on it.
//
// Maps are channels last: one array, image by image, row by row, position by position, channel by channel. A network is
// { layers: [{ weight, scale, shift, inputs, outputs }] × 4, head: { weight, bias, inputs, outputs } }; the weight of a
// layer has a row for each filter: 3 × 3 places of `inputs` numbers. Each layer is a convolution 3 × 3 with stride
// 2 and a border of one zero, batch normalisation on the images at hand, and ReLU; the head sees the mean over places.

const EPSILON = 1e-5;                                        // what torch adds to the variance

// From torch's order (filter, channel, row, column) to ours (filter, row, column, channel).
export function channelsLast(weight, outputs, inputs, places) {
  const moved = new Float64Array(weight.length);
  for (let f = 0; f < outputs; f++)
    for (let c = 0; c < inputs; c++)
      for (let p = 0; p < places; p++) moved[(f * places + p) * inputs + c] = weight[(f * inputs + c) * places + p];
  return moved;
}

// The 3 × 3 neighbourhood of every second place, one row of 9 · inputs numbers each.
export function patches(x, count, size, inputs) {
  const half = (side) => Math.ceil(side / 2);
  const [height, width] = size, [rows, columns] = [half(height), half(width)];
  const cut = new Float64Array(count * rows * columns * 9 * inputs);
  let to = 0;
  for (let n = 0; n < count; n++)
    for (let i = 0; i < rows; i++)
      for (let j = 0; j < columns; j++)
        for (let di = -1; di <= 1; di++)
          for (let dj = -1; dj <= 1; dj++, to += inputs) {
            const row = 2 * i + di, column = 2 * j + dj;
            if (row < 0 || row >= height || column < 0 || column >= width) continue;
            const from = ((n * height + row) * width + column) * inputs;
            for (let c = 0; c < inputs; c++) cut[to + c] = x[from + c];
          }
  return { cut, size: [rows, columns] };
}

// The transpose of `patches`: what flows back to every place that a neighbourhood saw.
export function unpatched(slope, count, size, inputs) {
  const [height, width] = size, [rows, columns] = size.map((side) => Math.ceil(side / 2));
  const back = new Float64Array(count * height * width * inputs);
  let from = 0;
  for (let n = 0; n < count; n++)
    for (let i = 0; i < rows; i++)
      for (let j = 0; j < columns; j++)
        for (let di = -1; di <= 1; di++)
          for (let dj = -1; dj <= 1; dj++, from += inputs) {
            const row = 2 * i + di, column = 2 * j + dj;
            if (row < 0 || row >= height || column < 0 || column >= width) continue;
            const to = ((n * height + row) * width + column) * inputs;
            for (let c = 0; c < inputs; c++) back[to + c] += slope[from + c];
          }
  return back;
}

// Every row of `x` times every row of `weight`. Two rows by four at a time, so that a number that is read serves often.
export function rowsTimesRows(x, weight, length, outputs) {
  const count = x.length / length, out = new Float64Array(count * outputs);
  const [rows, fours] = [count - (count % 2), outputs - (outputs % 4)];
  for (let n = 0; n < rows; n += 2)
    for (let o = 0; o < fours; o += 4) {
      let a = n * length, b = a + length, w0 = o * length, w1 = w0 + length, w2 = w1 + length, w3 = w2 + length;
      let a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
      for (const end = a + length; a < end; a++, b++, w0++, w1++, w2++, w3++) {
        const u = x[a], v = x[b], p = weight[w0], q = weight[w1], r = weight[w2], s = weight[w3];
        a0 += u * p; a1 += u * q; a2 += u * r; a3 += u * s;
        b0 += v * p; b1 += v * q; b2 += v * r; b3 += v * s;
      }
      const to = n * outputs + o, next = to + outputs;
      out[to] = a0; out[to + 1] = a1; out[to + 2] = a2; out[to + 3] = a3;
      out[next] = b0; out[next + 1] = b1; out[next + 2] = b2; out[next + 3] = b3;
    }
  for (let n = 0; n < count; n++)                            // what is left over
    for (let o = n < rows ? fours : 0; o < outputs; o++)
      for (let i = 0; i < length; i++) out[n * outputs + o] += x[n * length + i] * weight[o * length + i];
  return out;
}

// What flows back from the products of `rowsTimesRows`: to the weight, and to x where it is wanted.
export function rowsTimesRowsBack(x, weight, slope, length, outputs, wanted = true) {
  const count = x.length / length;
  const toWeight = new Float64Array(weight.length), toX = wanted ? new Float64Array(x.length) : null;
  for (let n = 0; n < count; n++)
    for (let o = 0; o < outputs; o++) {
      const d = slope[n * outputs + o], at = n * length, row = o * length;
      if (d === 0) continue;
      for (let i = 0; i < length; i++) toWeight[row + i] += d * x[at + i];
      if (wanted) for (let i = 0; i < length; i++) toX[at + i] += d * weight[row + i];
    }
  return { toWeight, toX };
}

// Batch normalisation: each channel to mean 0 and variance 1 over all images and places, then its own scale and shift.
export function normalised(x, scale, shift) {
  const channels = scale.length, count = x.length / channels;
  const mean = new Float64Array(channels), inverse = new Float64Array(channels);
  const unit = new Float64Array(x.length), out = new Float64Array(x.length);
  for (let i = 0; i < x.length; i += channels) for (let c = 0; c < channels; c++) mean[c] += x[i + c];
  for (let c = 0; c < channels; c++) mean[c] /= count;
  for (let i = 0; i < x.length; i += channels)
    for (let c = 0; c < channels; c++) {
      const away = x[i + c] - mean[c];
      unit[i + c] = away;
      inverse[c] += away * away;
    }
  for (let c = 0; c < channels; c++) inverse[c] = 1 / Math.sqrt(inverse[c] / count + EPSILON);
  for (let i = 0; i < x.length; i += channels)
    for (let c = 0; c < channels; c++) {
      unit[i + c] *= inverse[c];
      out[i + c] = unit[i + c] * scale[c] + shift[c];
    }
  return { unit, inverse, out };
}

export function normalisedBack({ unit, inverse }, scale, slope) {
  const channels = scale.length, count = unit.length / channels;
  const toShift = new Float64Array(channels), toScale = new Float64Array(channels), toX = new Float64Array(unit.length);
  for (let i = 0; i < slope.length; i += channels)
    for (let c = 0; c < channels; c++) {
      toShift[c] += slope[i + c];
      toScale[c] += slope[i + c] * unit[i + c];
    }
  // Mean and variance depend on x too: what they take away.
  for (let i = 0; i < slope.length; i += channels)
    for (let c = 0; c < channels; c++)
      toX[i + c] = scale[c] * inverse[c] * (slope[i + c] - toShift[c] / count - (unit[i + c] * toScale[c]) / count);
  return { toX, toScale, toShift };
}

// ReLU; Math.max lets NaN through, as torch does.
export function rectified(x) {
  const out = new Float64Array(x.length);
  for (let i = 0; i < x.length; i++) out[i] = Math.max(0, x[i]);
  return out;
}

// The mean over the places of each image, and back.
export function meanOverPlaces(x, count, channels) {
  const places = x.length / count / channels, out = new Float64Array(count * channels);
  for (let i = 0; i < x.length; i++)
    out[Math.floor(i / (places * channels)) * channels + (i % channels)] += x[i] / places;
  return out;
}

export function meanOverPlacesBack(slope, count, channels, places) {
  return Float64Array.from({ length: count * places * channels },
    (_, i) => slope[Math.floor(i / (places * channels)) * channels + (i % channels)] / places);
}

// What every layer saw and made; `logits` has one row of outputs for each image.
export function convTrace(net, x, count, size) {
  const layers = [];
  for (const { weight, scale, shift, inputs, outputs } of net.layers) {
    const seen = patches(x, count, size, inputs);
    const norm = normalised(rowsTimesRows(seen.cut, weight, 9 * inputs, outputs), scale, shift);
    layers.push({ cut: seen.cut, before: size, norm });
    x = rectified(norm.out);
    size = seen.size;
  }
  const { weight, bias, inputs, outputs } = net.head;
  const features = meanOverPlaces(x, count, inputs);
  const logits = rowsTimesRows(features, weight, inputs, outputs).map((value, i) => value + bias[i % outputs]);
  return { layers, features, places: size[0] * size[1], logits };
}

export const convLogits = (net, x, count, size) => convTrace(net, x, count, size).logits;

// The probability of each class, one row for each image.
export function softmax(logits, outputs) {
  const found = new Float64Array(logits.length);
  for (let at = 0; at < logits.length; at += outputs) {
    const row = logits.subarray(at, at + outputs), top = Math.max(...row);
    let sum = 0;
    for (let i = 0; i < outputs; i++) sum += found[at + i] = Math.exp(row[i] - top);
    for (let i = 0; i < outputs; i++) found[at + i] /= sum;
  }
  return found;
}

// The mean of −log p of the right class, and its slope in the logits.
export function crossEntropy(logits, labels, outputs) {
  const slope = softmax(logits, outputs), count = labels.length;
  let loss = 0;
  labels.forEach((label, n) => {
    const row = logits.subarray(n * outputs, (n + 1) * outputs), top = Math.max(...row);
    loss += (top + Math.log(row.reduce((sum, value) => sum + Math.exp(value - top), 0)) - row[label]) / count;
    slope[n * outputs + label] -= 1;
  });
  return { loss, slope: slope.map((d) => d / count) };
}

// The loss on some images and its gradient, in the shape of the network.
export function convGradient(net, x, labels, size) {
  const count = labels.length, trace = convTrace(net, x, count, size);
  const { loss, slope } = crossEntropy(trace.logits, labels, net.head.outputs);
  const back = rowsTimesRowsBack(trace.features, net.head.weight, slope, net.head.inputs, net.head.outputs);
  const bias = new Float64Array(net.head.outputs);
  slope.forEach((d, i) => { bias[i % bias.length] += d; });
  let flow = meanOverPlacesBack(back.toX, count, net.head.inputs, trace.places);
  const layers = [];
  for (let l = net.layers.length - 1; l >= 0; l--) {
    const { weight, scale, inputs, outputs } = net.layers[l], { cut, before, norm } = trace.layers[l];
    flow = flow.map((d, i) => (norm.out[i] > 0 ? d : 0));    // slope 0 at 0, as in torch
    const { toX, toScale, toShift } = normalisedBack(norm, scale, flow);
    const products = rowsTimesRowsBack(cut, weight, toX, 9 * inputs, outputs, l > 0);
    layers[l] = { weight: products.toWeight, scale: toScale, shift: toShift };
    if (l > 0) flow = unpatched(products.toX, count, before, inputs);
  }
  return { loss, gradient: { layers, head: { weight: back.toWeight, bias } } };
}

// One step of gradient descent, as a new network.
export function convStep(net, gradient, lr) {
  const stepped = (part, slopes) => ({ ...part, ...Object.fromEntries(Object.entries(slopes).map(([key, values]) =>
    [key, part[key].map((value, i) => value - lr * values[i])])) });
  return { layers: net.layers.map((layer, l) => stepped(layer, gradient.layers[l])),
           head: stepped(net.head, gradient.head) };
}

// The inner loop: the networks after 0 … `steps` steps on the images x with these labels.
export function convPath(net, x, labels, size, lr, steps) {
  const path = [net];
  for (let k = 0; k < steps; k++) path.push(convStep(path[k], convGradient(path[k], x, labels, size).gradient, lr));
  return path;
}
