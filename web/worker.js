/**
 * Download the model once, classify images with it. Runs beside the page, so that it stays usable.
 *
 * The page sends {id, file, precision, model}, model being model.json. The answers are any number
 * of {id, progress: {loaded, total}}, then {id, result} or {id, error: {kind, message}}.
 */
import { decode, ImageError, planCrop, reader, resizeCrop, toInput } from "./pixels.js";

const CACHE = "image-classifier"; // also in sw.js
const MAX_THREADS = 4; // more gain little for one image

const sessions = new Map(); // by path of the ONNX file
let runtime; // promise of onnxruntime-web
let queue = Promise.resolve();

self.onmessage = ({ data }) => {
  queue = queue.then(() => answer(data));
};

async function answer({ id, file, precision, model }) {
  try {
    const image = await decode(file);
    const plan = planCrop(image.width, image.height, model.preprocessing);
    const session = await load(model, precision, (loaded, total) => {
      self.postMessage({ id, progress: { loaded, total } });
    });
    const start = performance.now();
    const pixels = resizeCrop(reader(image), plan, model.preprocessing.resample);
    image.close();
    const result = await run(session, pixels, model.preprocessing);
    self.postMessage({ id, result: { ...result, pixels, milliseconds: performance.now() - start } });
  } catch (error) {
    const kind = error instanceof ImageError ? "image" : "model";
    self.postMessage({ id, error: { kind, message: error.message } });
  }
}

async function run(session, pixels, preprocessing) {
  const { Tensor } = await runtime;
  const { height, width } = preprocessing.crop;
  const input = new Tensor("float32", toInput(pixels, preprocessing), [1, 3, height, width]);
  const { logits, class_maps: maps } = await session.run({ pixel_values: input });
  const [, , mapHeight, mapWidth] = maps.dims;
  return {
    logits: logits.data,
    maps: maps.data,
    mapSize: { height: mapHeight, width: mapWidth },
  };
}

/** Return the session of a model; download it and the runtime first if necessary. */
async function load(model, precision, report) {
  const file = model.models[precision];
  if (sessions.has(file.path)) return sessions.get(file.path);
  const total = file.bytes + (runtime ? 0 : model.runtime.bytes);
  let done = 0;
  const add = (bytes) => report((done += bytes), total);
  const loading = runtime ?? startRuntime(model.runtime, add);
  try {
    runtime = loading;
    const { InferenceSession } = await loading;
    const bytes = await download(file, add);
    const session = await InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    sessions.set(file.path, session);
    return session;
  } catch (error) {
    if (!(await loading.catch(() => null))) runtime = undefined; // so that the next try starts anew
    throw error;
  }
}

async function startRuntime(file, add) {
  const compressed = await download(file, add);
  const ort = await import("./ort/ort.min.mjs");
  ort.env.wasm.wasmBinary = await decompress(compressed);
  ort.env.wasm.numThreads = self.crossOriginIsolated
    ? Math.min(MAX_THREADS, navigator.hardwareConcurrency || 1)
    : 1; // threads share memory, which needs that isolation
  return ort;
}

async function decompress(bytes) {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes; // the server declared the encoding
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Return the bytes of a file, from the cache if it is there; its address changes with them. */
async function download({ path, sha256, bytes }, add) {
  const url = `${path}?v=${sha256.slice(0, 16)}`;
  const cache = await caches.open(CACHE).catch(() => null); // some browsers forbid it in frames
  const cached = await cache?.match(url);
  if (cached) {
    add(bytes);
    return new Uint8Array(await cached.arrayBuffer());
  }
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new Error("The model could not be downloaded. Check the connection, then try again.");
  }
  if (!response.ok) {
    throw new Error(`The model could not be downloaded (HTTP status ${response.status}).`);
  }
  const chunks = [];
  try {
    for (const stream = response.body.getReader(); ; ) {
      const { done, value } = await stream.read();
      if (done) break;
      chunks.push(value);
      add(value.length);
    }
  } catch {
    throw new Error("The download of the model broke off. Check the connection, then try again.");
  }
  const content = new Uint8Array(await new Blob(chunks).arrayBuffer());
  await keep(cache, url, content).catch(() => {}); // no cache, or no space: download it next time
  return content;
}

/** Cache a file in place of its earlier versions. */
async function keep(cache, url, content) {
  const { pathname } = new URL(url, self.location.href);
  for (const { url: other } of await cache.keys()) {
    if (new URL(other).pathname === pathname) await cache.delete(other);
  }
  await cache.put(url, new Response(content));
}
