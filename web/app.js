/** The page: take an image, let worker.js classify it, show classes and heat map. */
import { paintMap, topClasses } from "./pixels.js";

const NUM_CLASSES_SHOWN = 5;
const LOW_CONFIDENCE = 0.5; // below this score, the top class is more likely wrong than right
const HEAT_MAP_SIDE = 448; // px
const element = (id) => document.getElementById(id);
const PRECISIONS = { int8: "8 bits", fp16: "16-bit weights", fp32: "float32" };

const model = await readModel();
const worker = startWorker();
let lastId = 0; // of the latest question; answers to earlier ones are dropped
let current; // the image that is shown, and its answer
let workerError; // why there is no worker
let precision = "int8";

describe();
offerExamples();
listen();
keepOffline();

/** Return model.json, or tell the visitor why the page cannot start. */
async function readModel() {
  try {
    const response = await fetch("model.json");
    if (!response.ok) throw new Error(`HTTP status ${response.status}`);
    return await response.json();
  } catch (error) {
    element("empty").textContent = `The page cannot start: model.json cannot be loaded (${error.message}).`;
    throw error;
  }
}

/** Let the page work offline, where the browser allows it. */
async function keepOffline() {
  try {
    await navigator.serviceWorker.register("sw.js");
  } catch (error) {
    console.info("The page needs a network connection:", error.message);
  }
}

function startWorker() {
  const started = new Worker("worker.js", { type: "module" });
  started.onmessage = ({ data }) => {
    if (data.id !== lastId) return;
    if (data.progress) showProgress(data.progress);
    else if (data.result) showResult(data.result);
    else showError(data.error);
  };
  started.onerror = () => {
    workerError = { kind: "browser", message: "This browser is too old to run the model." };
    showError(workerError);
  };
  return started;
}

/** Classify a file, and show it meanwhile. */
function classify(file) {
  current = { file };
  lastId += 1;
  showImage(file);
  element("error").replaceChildren();
  if (workerError) return showError(workerError);
  element("empty").hidden = true;
  element("result").hidden = true;
  element("answer").setAttribute("aria-busy", "true");
  showBusy("Classifying the image");
  worker.postMessage({ id: lastId, file, precision, model });
}

function showImage(file) {
  const image = element("image");
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(file);
  image.alt = file.name ? `Your image, ${file.name}` : "Your image";
  image.hidden = false;
  image.onerror = clearImage;
  element("choose").textContent = "Choose another image";
}

function clearImage() {
  element("image").hidden = true;
  element("choose").textContent = "Choose an image";
}

function showProgress({ done, total }) {
  if (done >= total) return showBusy("Starting the model");
  element("progress").value = done / total;
  element("loading-text").textContent = `Downloading the model, once: ${megabytes(done)} of ${megabytes(total)}`;
  say("Downloading the model.");
}

/** Show that something takes a moment of unknown length. */
function showBusy(text) {
  element("loading").hidden = false;
  element("loading-text").textContent = `${text} ...`;
  element("progress").removeAttribute("value");
  say(`${text}.`);
}

function showResult(result) {
  finish();
  current.result = result;
  const top = topClasses(result.logits, NUM_CLASSES_SHOWN);
  const chosen = top.map(({ index, score }, position) => choice(index, score, position === 0));
  element("classes").replaceChildren(element("classes").querySelector("legend"), ...chosen);
  const low = element("low");
  low.hidden = top[0].score >= LOW_CONFIDENCE;
  low.textContent =
    `Low confidence: the top class has a score of only ${percent(top[0].score, 1)}. The image may show ` +
    "several things, or something that the model was not trained on.";
  element("time").textContent = `Took ${Math.round(result.milliseconds)} ms on this device, with ${PRECISIONS[precision]}.`;
  say(`Most likely ${shortName(top[0].index)}, ${percent(top[0].score, 1)}.`);
  drawCrop(result.pixels);
  drawHeat(top[0].index);
  element("result").hidden = false;
  element("size").hidden = true;
  const answer = element("answer");
  const isBelow = answer.getBoundingClientRect().top > 0.6 * window.innerHeight; // on phones
  if (isBelow) answer.scrollIntoView();
}

/** Return a class as a radio button: arrow keys select the class whose heat map is shown. */
function choice(index, score, isChecked) {
  const input = make("input", { type: "radio", name: "class", value: index, checked: isChecked });
  const bar = make("span", {}, [make("span")]);
  bar.className = "bar";
  bar.firstChild.style.width = percent(score, 2);
  const name = make("span", { className: "name", textContent: shortName(index), title: model.labels[index] });
  const shown = score < 0.0005 ? "< 0.1%" : percent(score, 1);
  const value = make("span", { className: "score", textContent: shown });
  return make("label", { className: "class" }, [input, name, value, bar]);
}

function drawCrop(pixels) {
  const { height, width } = model.preprocessing.crop;
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    image.data.set(pixels.subarray(i * 3, i * 3 + 3), i * 4);
    image.data[i * 4 + 3] = 255;
  }
  draw(element("crop"), image);
}

function drawHeat(index) {
  const { maps, mapSize } = current.result;
  const positions = mapSize.height * mapSize.width;
  const map = maps.subarray(index * positions, (index + 1) * positions);
  const { height, width } = model.preprocessing.crop;
  const size = { height: Math.round((HEAT_MAP_SIDE * height) / width), width: HEAT_MAP_SIDE };
  const painted = paintMap(map, mapSize, size);
  const heat = element("heat");
  heat.hidden = painted === null;
  if (painted) draw(heat, new ImageData(painted, size.width, size.height));
  const name = shortName(index);
  heat.setAttribute("aria-label", `Heat map: ${name}`);
  element("caption").replaceChildren(
    painted ? "What the model sees. Bright areas raise the score of " : "What the model sees. Nothing in it raises the score of ",
    make("strong", { textContent: name }),
    `. The map has ${mapSize.height} x ${mapSize.width} values.`,
  );
}

function draw(canvas, image) {
  canvas.width = image.width;
  canvas.height = image.height;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function showError({ kind, message }) {
  finish();
  if (kind === "image") {
    clearImage();
    current = undefined;
  }
  element("empty").hidden = false;
  say("");
  const note = make("div", { className: "note error" }, [make("p", { textContent: message })]);
  if (kind === "model" && current?.file) {
    const again = make("button", { type: "button", textContent: "Try again" });
    again.onclick = () => classify(current.file);
    note.append(again);
  }
  element("error").replaceChildren(note);
}

/** Tell users of screen readers what happens, each thing once. */
function say(text) {
  if (element("status").textContent !== text) element("status").textContent = text;
}

function finish() {
  element("answer").setAttribute("aria-busy", "false");
  element("loading").hidden = true;
}

/** Fill in what model.json says about the model. */
function describe() {
  const count = model.labels.length;
  const classes = count === 1 ? "1 class" : `${count.toLocaleString("en")} classes`;
  element("intro").textContent =
    `A neural network picks the most likely of ${classes}${count <= 12 ? ` (${model.labels.map((_, i) => shortName(i)).join(", ")})` : ""} ` +
    "and shows which parts of the image speak for them.";
  const name = model.url ? make("a", { href: model.url, textContent: model.name }) : make("strong", { textContent: model.name });
  element("about-text").replaceChildren(name, `: ${model.architecture}, ${classes}. It sees ` +
    `${model.preprocessing.crop.width} x ${model.preprocessing.crop.height} pixels of an image.`);
  const shown = Object.entries(model.models);
  element("precisions").querySelector("tbody").replaceChildren(...shown.map(([key, value]) => precisionRow(key, value)));
  element("measured").textContent =
    `Accuracy measured with ONNX Runtime on the ${model.dataset.num_images.toLocaleString("en")} images of the ` +
    `${model.dataset.split} split of ${model.dataset.name}.`;
  element("classes-title").textContent = `The ${classes}`;
  element("all-classes").replaceChildren(...model.labels.map((label) => make("li", { textContent: label })));
  element("empty").textContent = "The most likely classes appear here.";
  updateSize();
}

function precisionRow(key, { path, bytes, top1, same_top1: same }) {
  const input = make("input", { type: "radio", name: "precision", value: key, checked: key === precision });
  const name = path ? make("label", {}, [input, PRECISIONS[key]]) : PRECISIONS[key];
  const cells = [path ? megabytes(bytes) : "not offered", accuracy(top1), path ? accuracy(same) : ""];
  return make("tr", {}, [
    make("th", { scope: "row" }, [name]),
    ...cells.map((textContent) => make("td", { className: "number", textContent })),
  ]);
}

function updateSize() {
  const total = model.models[precision].bytes + model.runtime.bytes;
  element("size").hidden = false;
  element("size").textContent = `The first image downloads the model, ${megabytes(total)}. Later ones need no network.`;
}

function offerExamples() {
  if (model.examples.length === 0) return;
  element("examples-title").textContent = "Or try an example";
  const buttons = model.examples.map(({ path, name }) => {
    const image = make("img", { src: path, alt: "" });
    const button = make("button", { type: "button" }, [image, make("span", { textContent: name, title: name })]);
    button.onclick = () => classifyExample(path, name);
    return make("li", {}, [button]);
  });
  element("examples").querySelector("ul").replaceChildren(...buttons);
  element("examples").hidden = false;
}

async function classifyExample(path, name) {
  try {
    const response = await fetch(path);
    if (!response.ok) throw new Error(`HTTP status ${response.status}`);
    classify(new File([await response.blob()], name));
  } catch (error) {
    showError({ kind: "image", message: `This example cannot be downloaded (${error.message}).` });
  }
}

function listen() {
  const drop = element("drop");
  element("file").onchange = ({ target }) => {
    if (target.files.length) classify(target.files[0]);
    target.value = ""; // so that the same file can be chosen again
  };
  document.ondragover = (event) => {
    event.preventDefault();
    drop.classList.add("over");
  };
  document.ondragleave = () => drop.classList.remove("over");
  document.ondrop = (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take(event.dataTransfer);
  };
  document.onpaste = (event) => take(event.clipboardData);
  element("classes").onchange = ({ target }) => drawHeat(Number(target.value));
  element("strength").oninput = ({ target }) => {
    element("heat").style.opacity = target.value / 100;
  };
  element("precisions").onchange = ({ target }) => {
    precision = target.value;
    updateSize();
    if (current?.file) classify(current.file);
  };
}

function take({ files }) {
  if (files.length) classify(files[0]);
}

/** Return the first synonym of a class, or all of them where another class shares the first. */
function shortName(index) {
  const first = (label) => label.split(",")[0];
  const name = first(model.labels[index]);
  return model.labels.filter((label) => first(label) === name).length > 1 ? model.labels[index] : name;
}

function make(tag, properties = {}, children = []) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function percent(part, digits) {
  return `${(100 * part).toFixed(digits)}%`;
}

/** Return a part of many images as percent, with enough digits not to round to 0% or 100% what is neither. */
function accuracy(part) {
  let digits = 2;
  while (digits < 8 && part > 0 && part < 1 && [0, 100].includes(Number((100 * part).toFixed(digits)))) digits++;
  return percent(part, digits);
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}
