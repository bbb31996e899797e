/**
 * Download the model once, classify images with it. Runs beside the page, so that it stays usable.
 *
 * The page sends {id, file, precision, model}, model being model.json. The answers are any number
 * of {id, progress: {done, total}}, then {id, result} or {id, error: {kind, message}}.
 */
import { decode, ImageError, planCrop, reader, resizeCrop, toInput } from "./pixels.js";

const CACHE = "image-classifier"; // also in sw.js
const MAX_THREADS = 4; // more gain little for one image

let runtime; // promise of onnxruntime-web
let loaded; // {path, session} of the one model in memory
let queue = Promise.resolve();
let latest; // id of the latest question; those that still wait behind it are dropped

self.onmessage = ({ data }) => {
  latest = data.id;
  queue = queue.then(() => data.id === latest && answer(data));
};

/** A model that cannot be downloaded; the message is shown to the visitor. */
class DownloadError extends Error {}

async function answer({ id, file, precision, model }) {
  try {
    const image = await decode(file);
    const plan = planCrop(image.width, image.height, model.preprocessing);
    const session = await load(model, precision, (done, total) => {
      self.postMessage({ id, progress: { done, total } });
    });
    const start = performance.now();
    const pixels = resizeCrop(reader(image), plan, model.preprocessing.resample);
    image.close();
    const result = await run(session, pixels, model.preprocessing);
    self.postMessage({ id, result: { ...result, pixels, milliseconds: performance.now() - start } });
  } catch (error) {
    const kind = error instanceof ImageError ? "image" : "model";
    const isExplained = error instanceof ImageError || error instanceof DownloadError;
    const message = isExplained ? error.message : `The model cannot be run: ${error.message}`;
    self.postMessage({ id, error: { kind, message } });
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
  if (loaded?.path === file.path) return loaded.session;
  const total = file.bytes + (runtime ? 0 : model.runtime.bytes);
  let done = 0;
  const add = (bytes) => report((done += bytes), total);
  try {
    runtime ??= startRuntime(model.runtime, add);
    await runtime;
  } catch (error) {
    runtime = undefined; // so that the next try starts anew
    throw error;
  }
  const { InferenceSession } = await runtime;
  const bytes = await download(file, add);
  await loaded?.session.release(); // phones have little memory
  loaded = undefined;
  const session = await InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  loaded = { path: file.path, session };
  return session;
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
  const cache = await openCache();
  const cached = await cache?.match(url);
  if (cached) {
    add(bytes);
    return new Uint8Array(await cached.arrayBuffer());
  }
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new DownloadError("The model could not be downloaded. Check the connection, then try again.");
  }
  if (!response.ok) {
    throw new DownloadError(`The model could not be downloaded (HTTP status ${response.status}).`);
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
    throw new DownloadError("The download of the model broke off. Check the connection, then try again.");
  }
  const content = new Uint8Array(await new Blob(chunks).arrayBuffer());
  if (cache) await keep(cache, url, content).catch(() => {}); // no space: download it next time
  return content;
}

/** Return the cache; null where the browser forbids it, as some do in frames. */
async function openCache() {
  try {
    return await caches.open(CACHE);
  } catch {
    return null;
  }
}

/** Cache a file in place of its earlier versions. */
async function keep(cache, url, content) {
  const { pathname } = new URL(url, self.location.href);
  for (const { url: other } of await cache.keys()) {
    if (new URL(other).pathname === pathname) await cache.delete(other);
  }
  await cache.put(url, new Response(content));
}
