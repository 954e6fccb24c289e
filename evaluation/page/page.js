"use strict";
// Draws E[x|z] of every decoder from the JSON in #explorer (explorer.py), and sorts the table of images.

// ---- Weights ----

const bytesOf = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

// Half precision, little-endian, as base64 -> Float32Array.
function floatsOf(base64) {
  const bytes = bytesOf(base64);
  const floats = new Float32Array(bytes.length / 2);
  for (let i = 0; i < floats.length; i++) {
    const bits = bytes[2 * i] | (bytes[2 * i + 1] << 8);
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    const size = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
    floats[i] = bits & 32768 ? -size : size;
  }
  return floats;
}

const rowsOf = (values, width) =>
  Array.from({ length: values.length / width }, (_, n) => values.subarray(n * width, (n + 1) * width));

// A convolution moves a kernel over the larger of two pictures; if transposed, it draws the larger from the smaller.
function convolve({ weight, bias, out_channels: outputs, kernel_size, stride, padding }, { values, shape }, transposed) {
  const [inputs, ...given] = shape;
  const size = given.map((length, d) =>
    transposed
      ? (length - 1) * stride[d] - 2 * padding[d] + kernel_size[d]
      : Math.floor((length + 2 * padding[d] - kernel_size[d]) / stride[d]) + 1);
  const [[height, width], [below, beside]] = transposed ? [given, size] : [size, given];
  const [rows, columns] = kernel_size;
  const drawn = new Float32Array(outputs * size[0] * size[1]);
  for (let o = 0; o < outputs; o++) {
    const plane = drawn.subarray(o * size[0] * size[1], (o + 1) * size[0] * size[1]);
    if (bias) plane.fill(bias[o]);
    for (let i = 0; i < inputs; i++) {
      const source = values.subarray(i * given[0] * given[1], (i + 1) * given[0] * given[1]);
      const kernel = transposed ? i * outputs + o : o * inputs + i;
      for (let r = 0; r < rows; r++)
        for (let c = 0; c < columns; c++) {
          const w = weight[(kernel * rows + r) * columns + c];
          for (let y = 0; y < height; y++) {
            const row = y * stride[0] - padding[0] + r;
            if (row < 0 || row >= below) continue;
            for (let x = 0; x < width; x++) {
              const column = x * stride[1] - padding[1] + c;
              if (column < 0 || column >= beside) continue;
              if (transposed) plane[row * beside + column] += w * source[y * width + x];
              else plane[y * width + x] += w * source[row * beside + column];
            }
          }
        }
    }
  }
  return { values: drawn, shape: [outputs, ...size] };
}

// ---- Layers, by PyTorch's names: (layer, {values, shape}) -> {values, shape}; a shape is [channels, height, width] ----

const LAYERS = {
  Linear({ weight, bias }, { values }) {
    const inputs = values.length;
    const outputs = new Float32Array(weight.length / inputs);
    for (let o = 0; o < outputs.length; o++) {
      let sum = bias ? bias[o] : 0;
      for (let i = 0, w = o * inputs; i < inputs; i++, w++) sum += weight[w] * values[i];
      outputs[o] = sum;
    }
    return { values: outputs, shape: [outputs.length, 1, 1] };
  },
  LayerNorm({ weight, bias, eps }, { values, shape }) {
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length;
    const scale = 1 / Math.sqrt(variance + eps);
    return { values: values.map((value, i) => (value - mean) * scale * weight[i] + bias[i]), shape };
  },
  SiLU: (layer, { values, shape }) => ({ values: values.map((value) => value / (1 + Math.exp(-value))), shape }),
  Tanh: ({ scale = 1 }, { values, shape }) => ({ values: values.map((value) => Math.tanh(scale * value)), shape }),
  Identity: (layer, input) => input,
  Unflatten: ({ unflattened_size: shape }, { values }) => ({ values, shape }),
  ConvTranspose2d: (layer, input) => convolve(layer, input, true),
  Conv2d: (layer, input) => convolve(layer, input, false),
  PixelShuffle({ upscale_factor: factor }, { values, shape }) {
    const [channels, height, width] = [shape[0] / factor ** 2, shape[1] * factor, shape[2] * factor];
    const drawn = values.map((_, n) => {
      const [x, y, channel] = [n % width, Math.floor(n / width) % height, Math.floor(n / (width * height))];
      const from = (channel * factor + (y % factor)) * factor + (x % factor); // the channel of this pixel
      return values[(from * shape[1] + Math.floor(y / factor)) * shape[2] + Math.floor(x / factor)];
    });
    return { values: drawn, shape: [channels, height, width] };
  },
};

function decode(layers, z) {
  let output = { values: Float32Array.from(z), shape: [z.length, 1, 1] };
  for (const layer of layers) output = LAYERS[layer.type](layer, output);
  return output.values;
}

// ---- The explorer ----

function explore(data) {
  const byId = (id) => document.getElementById(id);
  const methods = Object.values(data.methods);
  const [channels, height, width] = data.image_shape;
  const pixels = channels * height * width;
  const images = rowsOf(Float32Array.from(bytesOf(data.images), (value) => value / 127.5 - 1), pixels);
  const count = data.labels.length;
  for (const method of methods) {
    method.means = rowsOf(floatsOf(method.means), method.latent_dim);
    method.directions = rowsOf(floatsOf(method.directions), method.latent_dim);
    for (const layer of method.layers)
      for (const name of ["weight", "bias"]) if (name in layer) layer[name] = floatsOf(layer[name]);
  }

  // What is shown: two images, how far from the first to the second, the sliders, and a z of no image, if any.
  const state = { image: 0, target: Math.min(1, count - 1), walk: 0, free: null, origin: "" };
  const dimensions = Math.max(...methods.map((method) => method.latent_dim));
  const sliders = [...document.querySelectorAll("#sliders input")];

  const title = (n) => `${data.classes[data.labels[n]]}, test image ${data.index[n].toLocaleString("en")}`;

  function latent(method) {
    const z = Float32Array.from(method.means[state.image]);
    const end = method.means[state.target];
    for (let d = 0; d < z.length; d++) z[d] = state.free ? (state.free[d] ?? 0) : z[d] + state.walk * (end[d] - z[d]);
    sliders.forEach((slider, s) => {
      const direction = method.directions[s];
      if (direction) for (let d = 0; d < z.length; d++) z[d] += slider.value * method.deviations[s] * direction[d];
    });
    return z;
  }

  // Values in [-1, 1], channel by channel, on a canvas of the image's own size.
  function paint(canvas, values) {
    const context = canvas.getContext("2d");
    const drawn = context.createImageData(width, height);
    const plane = height * width;
    for (let i = 0; i < plane; i++) {
      let colour = Array.from({ length: channels }, (_, c) => values[c * plane + i]);
      if (channels !== 3) colour = Array(3).fill(colour.reduce((sum, value) => sum + value, 0) / channels);
      drawn.data.set([...colour.map((value) => Math.round((value + 1) * 127.5)), 255], 4 * i);
    }
    context.putImageData(drawn, 0, 0);
  }

  function draw() {
    paint(byId("original"), images[state.image]);
    byId("original-title").textContent = title(state.image);
    methods.forEach((method, m) => {
      const picture = decode(method.layers, latent(method)).slice(0, pixels);
      paint(byId(`picture-${m}`), picture);
      const error = picture.reduce((sum, value, i) => sum + (value - images[state.image][i]) ** 2, 0);
      const known = method.log_prob[state.image];
      byId(`elbo-${m}`).textContent = method.elbo[state.image].toFixed(1);
      byId(`log-prob-${m}`).textContent = known ? `${known[0].toFixed(1)} ± ${known[1].toFixed(1)}` : "not measured";
      byId(`error-${m}`).textContent = error.toFixed(1);
    });
    sliders.forEach((slider) => (slider.nextElementSibling.textContent = (+slider.value).toFixed(1)));
    byId("walk-value").textContent = `${Math.round(100 * state.walk)}%`;
    const base = state.free
      ? `z is ${state.origin} under every method with as many dimensions`
      : state.walk > 0
        ? `z is on the line to: ${title(state.target)}`
        : "z is the mean of q(z) of the image";
    byId("where").textContent = base + (sliders.some((slider) => +slider.value) ? ", moved by the sliders below" : "");
    drawMaps();
  }

  // Shows z of the same numbers under all methods, or if null, of the image; origin: what they are, by default themselves.
  const rounded = (value) => (Math.round(100 * value) / 100 || 0).toFixed(2);
  function put(z, origin = `(${z.slice(0, dimensions).map(rounded).join(", ")})`) {
    state.free = z;
    state.origin = origin;
    sliders.forEach((slider) => (slider.value = 0));
    draw();
  }

  function choose(n) {
    state.image = n;
    state.walk = 0;
    byId("walk").value = 0;
    byId("image").value = state.image;
    put(null, "");
  }

  // ---- The maps ----

  // Of at most two dimensions z itself is shown, on equal axes that are the same for all methods; of one, a row a class.
  const isPlane = (method) => method.latent_dim <= 2;
  const reach = 1.05 * Math.max(2, ...methods.filter(isPlane).flatMap((method) => method.points.flat().map(Math.abs)));
  const unit = (canvas) => Math.min(canvas.width, canvas.height) / 2 / reach;
  const onPlane = (canvas, [x, y]) => [canvas.width / 2 + x * unit(canvas), canvas.height / 2 - y * unit(canvas)];
  const onLine = (canvas, [x, y], n) =>
    [onPlane(canvas, [x, 0])[0], canvas.height * (1 - (data.labels[n] + 0.5 + 0.7 * y) / data.classes.length)];

  const inside = (method, canvas) => {
    if (isPlane(method))
      return method.points.map((point, n) => (method.latent_dim > 1 ? onPlane : onLine)(canvas, point, n));
    const fill = (values, size) => {
      const [low, high] = [Math.min(...values), Math.max(...values)];
      return values.map((value) => 14 + ((value - low) / (high - low || 1)) * (size - 28));
    };
    const y = fill(method.points.map((point) => point[1]), canvas.height);
    return fill(method.points.map((point) => point[0]), canvas.width).map((x, n) => [x, canvas.height - y[n]]);
  };
  const places = methods.map((method, m) => inside(method, byId(`map-${m}`)));
  const short = Math.max(...data.classes.map((name) => name.length)) <= 2;

  function drawMaps() {
    methods.forEach((method, m) => {
      const canvas = byId(`map-${m}`);
      const context = canvas.getContext("2d");
      context.fillStyle = "white";
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.font = `${15 * Math.max(1, canvas.width / (canvas.clientWidth || canvas.width))}px sans-serif`;
      context.textAlign = "center";
      context.textBaseline = "middle";
      places[m].forEach(([x, y], n) => {
        context.fillStyle = data.colors[data.labels[n]];
        if (short) context.fillText(data.classes[data.labels[n]], x, y);
        else context.fillRect(x - 3, y - 3, 6, 6);
      });
      // The prior's standard deviations, and where z is.
      const outline = (x, y, radius, width, colour) => {
        context.strokeStyle = colour;
        context.lineWidth = width;
        context.beginPath();
        if (method.latent_dim > 1) context.arc(x, y, radius, 0, 2 * Math.PI);
        else for (const end of [0, canvas.height]) context.lineTo(x, end);
        context.stroke();
      };
      let place = !state.free && places[m][state.image];
      if (isPlane(method)) {
        context.setLineDash([6, 5]);
        for (const z of method.latent_dim > 1 ? [1, 2] : [-2, -1, 1, 2]) {
          const [x, y] = onPlane(canvas, [method.latent_dim > 1 ? 0 : z, 0]);
          outline(x, y, z * unit(canvas), 1.5, "#555555");
        }
        context.setLineDash([]);
        place = onPlane(canvas, latent(method));
      }
      if (place) outline(...place, 13, 3, "#d00000");
    });
  }

  function nearest(points, x, y, allowed = () => true) {
    const distance = ([px, py]) => (px - x) ** 2 + (py - y) ** 2;
    return points.reduce(
      (best, point, n) => (allowed(point, n) && (best < 0 || distance(point) < distance(points[best])) ? n : best), -1);
  }

  methods.forEach((method, m) => {
    const canvas = byId(`map-${m}`);
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top].map((value) => (value * canvas.width) / box.width);
    };
    canvas.addEventListener(isPlane(method) ? "dblclick" : "click", (event) => choose(nearest(places[m], ...at(event))));
    if (isPlane(method)) {
      const [left, top] = onPlane(canvas, [0, 0]);
      const drag = (event) => {
        const [x, y] = at(event);
        if (event.buttons) put([(x - left) / unit(canvas), (top - y) / unit(canvas)]);
      };
      for (const name of ["pointerdown", "pointermove"]) canvas.addEventListener(name, drag);
    }
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      if (isPlane(method)) {
        const [one, other = 0] = latent(method);
        return put([one + 0.1 * step[0], other - 0.1 * step[1]]);
      }
      const [x, y] = places[m][state.image];
      const found = nearest(places[m], x, y, ([px, py], n) => {
        const along = (px - x) * step[0] + (py - y) * step[1];
        const across = Math.abs((px - x) * step[1]) + Math.abs((py - y) * step[0]);
        return n !== state.image && along > 0 && along >= across;
      });
      if (found >= 0) choose(found);
    });
  });

  // ---- Controls ----

  const order = [...Array(count).keys()].sort((one, other) => data.labels[one] - data.labels[other] || one - other);
  for (const name of ["image", "target"]) {
    const select = byId(name);
    for (const n of order) {
      const annealed = methods.some((method) => method.log_prob[n]);
      select.add(new Option(title(n) + (annealed ? ", log p(x) known" : ""), n));
    }
    select.value = state[name];
  }
  byId("image").addEventListener("change", (event) => choose(+event.target.value));
  const beside = (step) => choose(order[(order.indexOf(state.image) + step + count) % count]);
  byId("previous").addEventListener("click", () => beside(-1));
  byId("next").addEventListener("click", () => beside(1));
  byId("back").addEventListener("click", () => choose(state.image));
  byId("prior").addEventListener("click", () => {
    const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
    put(Float32Array.from({ length: dimensions }, normal), "a draw from p(z)");
  });
  byId("target").addEventListener("change", (event) => {
    state.target = +event.target.value;
    draw();
  });
  byId("walk").addEventListener("input", (event) => {
    state.walk = +event.target.value;
    state.free = null;
    draw();
  });
  sliders.forEach((slider) => slider.addEventListener("input", draw));
  for (const button of document.querySelectorAll("button[data-image]")) {
    const n = data.index.indexOf(+button.dataset.image);
    button.addEventListener("click", () => {
      choose(n);
      byId("explore").scrollIntoView();
    });
  }

  const differences = methods.map((method) => {
    const drawn = decode(method.layers, method.means[0]);
    return floatsOf(method.first).reduce((most, value, i) => Math.max(most, Math.abs(value - drawn[i])), 0);
  });
  const most = Math.max(...differences) / 2;
  byId("agreement").textContent =
    `Weights are in half precision: this picture and PyTorch's differ by at most ${(255 * most).toFixed(2)}/255.`;
  byId("agreement").classList.toggle("warning", most > 1 / 255);
  const annealed = data.labels.findIndex((_, n) => methods.some((method) => method.log_prob[n]));
  choose(Math.max(annealed, 0));
}

// ---- The table of images ----

function sortable(table) {
  const body = table.tBodies[0];
  // Numbers as numbers; names that hold numbers by these.
  const compare = (one, other) =>
    isNaN(one) || isNaN(other) ? one.localeCompare(other, undefined, { numeric: true }) : one - other;
  for (const button of table.querySelectorAll("th button"))
    button.addEventListener("click", () => {
      const header = button.closest("th");
      const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const each of table.querySelectorAll("th")) each.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [row.cells[header.cellIndex].textContent, row]);
      rows.sort(([one], [other]) => sign * compare(one, other));
      body.append(...rows.map(([, row]) => row));
    });
}

// ---- Figures of an epoch ----

function chooseEpoch(select) {
  const show = () => {
    for (const figure of document.querySelectorAll("figure[data-epoch]"))
      figure.hidden = figure.dataset.epoch !== select.value;
  };
  select.addEventListener("change", show);
  show();
}

const stored = document.getElementById("explorer");
if (stored) explore(JSON.parse(stored.textContent));
document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("#epoch").forEach(chooseEpoch);
