/**
 * Keep the page usable offline: its files come from the network, and without one from the cache.
 * worker.js caches the model and the runtime, when they are first used.
 */
const CACHE = "image-classifier"; // also in worker.js
const FILES = [
  "./", "style.css", "app.js", "worker.js", "pixels.js", "model.json", "ort/ort.min.mjs",
];

self.addEventListener("install", (event) => event.waitUntil(install()));
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  const isOurs = event.request.method === "GET" && url.origin === self.location.origin;
  if (isOurs && !url.searchParams.has("v")) event.respondWith(respond(event.request));
});

async function install() {
  const cache = await caches.open(CACHE);
  const { examples } = await (await fetch("model.json", { cache: "reload" })).json();
  await cache.addAll([...FILES, ...examples.map(({ path }) => path)]);
  await self.skipWaiting();
}

async function respond(request) {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(request, response.clone());
    return response;
  } catch (error) {
    const name = request.mode === "navigate" ? "./" : request;
    const cached = await cache.match(name, { ignoreSearch: true });
    if (cached) return cached;
    throw error;
  }
}
