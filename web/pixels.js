/**
 * From an image file to the pixels that the model sees: those of the model's image processor.
 *
 * The resizing repeats the arithmetic of torch's uint8 kernel (weights of 16 bits, the result of
 * the horizontal pass rounded to 8 bits), which torchvision and so the processor use. Pillow's
 * differs by at most one level. Nothing here needs a page: `decode` runs in a worker, the rest
 * also in Node.
 */

/** A file that cannot be classified; the message is shown to the visitor. */
export class ImageError extends Error {}

const MAX_ASPECT_RATIO = 32; // of more elongated images only the center is resized, as in training
const BAND_PIXELS = 1 << 22; // read from the canvas at once; phones limit the size of a canvas

/**
 * Return where the processor's central crop lies.
 *
 * @param {number} width Width of the upright image, px.
 * @param {number} height Height of the upright image, px.
 * @param {{resize: number, crop: {height: number, width: number}}} preprocessing Shorter side
 *     before the crop, and size of the crop, px.
 * @returns The box of the image that is resized, the size that it is resized to, and the corner of
 *     the crop in the result.
 */
export function planCrop(width, height, { resize, crop }) {
  const short = Math.min(width, height);
  const ratio = Math.floor(Math.max(width, height) / short);
  const cut = short * Math.max(0, Math.floor((ratio - MAX_ASPECT_RATIO) / 2));
  const box = width > height
    ? { left: cut, top: 0, width: width - 2 * cut, height }
    : { left: 0, top: cut, width, height: height - 2 * cut };
  const size = box.width > box.height
    ? { width: Math.floor((resize * box.width) / box.height), height: resize }
    : { width: resize, height: Math.floor((resize * box.height) / box.width) };
  const corner = {
    left: Math.floor((size.width - crop.width) / 2),
    top: Math.floor((size.height - crop.height) / 2),
  };
  return { box, size, corner, crop };
}

const FILTERS = {
  bilinear: { support: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, at: cubic }, // Keys 1981 with a = -0.5, as Pillow and torch antialias
};

function cubic(position) {
  const a = -0.5;
  const x = Math.abs(position);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

/**
 * Return the weights with which input samples add up to each output sample.
 *
 * @param {number} inSize Samples of the input.
 * @param {number} outSize Samples of the output.
 * @param {"bilinear" | "bicubic"} resample Interpolation, widened where it shrinks the image.
 * @returns `first[o]` is the first input sample of output o, `counts[o]` their number, and
 *     `weights[o * taps + i]` their weights, in units of 2 ** -precision.
 */
export function resizeWeights(inSize, outSize, resample) {
  const filter = FILTERS[resample];
  const scale = inSize / outSize;
  const widening = Math.max(scale, 1);
  const support = filter.support * widening;
  const taps = 2 * Math.ceil(support) + 1;
  const first = new Int32Array(outSize);
  const counts = new Int32Array(outSize);
  const exact = new Float64Array(outSize * taps);
  let largest = 0;
  for (let o = 0; o < outSize; o++) {
    const center = scale * (o + 0.5);
    const begin = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(inSize, Math.trunc(center + support + 0.5));
    first[o] = begin;
    counts[o] = Math.min(end - begin, taps);
    let sum = 0;
    for (let i = 0; i < counts[o]; i++) {
      exact[o * taps + i] = filter.at((begin + i - center + 0.5) / widening);
      sum += exact[o * taps + i];
    }
    for (let i = 0; i < counts[o]; i++) {
      exact[o * taps + i] /= sum;
      largest = Math.max(largest, exact[o * taps + i]);
    }
  }
  let precision = 0;
  while (precision < 22 && Math.trunc(0.5 + largest * 2 ** (precision + 1)) < 2 ** 15) precision++;
  const weights = Int16Array.from(exact, (w) => Math.trunc(w * 2 ** precision + (w < 0 ? -0.5 : 0.5)));
  return { first, counts, weights, taps, precision };
}

/**
 * Resize an image and take a crop of the result; only pixels of the crop are computed.
 *
 * @param {(left: number, top: number, width: number, height: number) => Uint8ClampedArray} read
 *     Returns the RGBA pixels of a box of the image.
 * @param {ReturnType<typeof planCrop>} plan Which part to resize, and to what size.
 * @param {"bilinear" | "bicubic"} resample Interpolation.
 * @returns {Uint8ClampedArray} RGB pixels of the crop, row by row.
 */
export function resizeCrop(read, { box, size, corner, crop }, resample) {
  const across = resizeWeights(box.width, size.width, resample);
  const down = resizeWeights(box.height, size.height, resample);
  const [left, right] = needed(across, corner.left, crop.width);
  const [top, bottom] = needed(down, corner.top, crop.height);

  const narrow = new Uint8ClampedArray((bottom - top) * crop.width * 3); // after the horizontal pass
  const bandRows = Math.max(1, Math.floor(BAND_PIXELS / (right - left)));
  for (let y = top; y < bottom; y += bandRows) {
    const rows = Math.min(bandRows, bottom - y);
    const band = read(box.left + left, box.top + y, right - left, rows);
    for (let row = 0; row < rows; row++) {
      const source = row * (right - left) * 4;
      const target = (y - top + row) * crop.width * 3;
      for (let x = 0; x < crop.width; x++) {
        const o = corner.left + x;
        const from = source + (across.first[o] - left) * 4;
        weighted(band, from, 4, across, o, narrow, target + x * 3);
      }
    }
  }

  const pixels = new Uint8ClampedArray(crop.height * crop.width * 3);
  const stride = crop.width * 3;
  for (let y = 0; y < crop.height; y++) {
    const o = corner.top + y;
    for (let x = 0; x < crop.width; x++) {
      const from = (down.first[o] - top) * stride + x * 3;
      weighted(narrow, from, stride, down, o, pixels, y * stride + x * 3);
    }
  }
  return pixels;
}

/** Return the first, and one past the last, input sample of the outputs from `start` on. */
function needed({ first, counts }, start, length) {
  const last = start + length - 1;
  return [first[start], first[last] + counts[last]];
}

/** Write one output pixel: the weighted sum of RGB pixels that are `step` apart. */
function weighted(source, from, step, { counts, weights, taps, precision }, o, target, to) {
  let red = 2 ** (precision - 1); // rounds half up
  let green = red;
  let blue = red;
  for (let i = 0, p = from, w = o * taps; i < counts[o]; i++, p += step, w++) {
    red += weights[w] * source[p];
    green += weights[w] * source[p + 1];
    blue += weights[w] * source[p + 2];
  }
  target[to] = red >> precision; // the array clamps to 0..255
  target[to + 1] = green >> precision;
  target[to + 2] = blue >> precision;
}

/**
 * Return the model's input: (1, 3, H, W), normalized.
 *
 * @param {Uint8ClampedArray} pixels RGB, row by row.
 * @param {{mean: number[], std: number[]}} preprocessing Of values in [0, 1].
 */
export function toInput(pixels, { mean, std }) {
  const plane = pixels.length / 3;
  const input = new Float32Array(pixels.length);
  for (let channel = 0; channel < 3; channel++) {
    for (let i = 0; i < plane; i++) {
      input[channel * plane + i] = (pixels[i * 3 + channel] / 255 - mean[channel]) / std[channel];
    }
  }
  return input;
}

// First bytes of files, as Latin-1. Browsers open the first group; some also open the second.
const SIGNATURES = [
  [/^\xff\xd8\xff/, "JPEG"],
  [/^\x89PNG\r\n\x1a\n/, "PNG"],
  [/^RIFF....WEBP/s, "WebP"],
  [/^....ftypavi[fs]/s, "AVIF"],
  [/^GIF8[79]a/, "GIF"],
  [/^BM/, "BMP"],
  [/^\0\0\x01\0/, "ICO"],
  [/^....ftyp(hei[cxms]|hevc|mif1|msf1)/s, "HEIC"],
  [/^(II\*\0|MM\0\*)/, "TIFF"],
  [/^(\xff\x4f\xff\x51|\0\0\0\x0cjP {2})/, "JPEG 2000"],
];
const SUPPORTED = "JPEG, PNG, WebP, AVIF, GIF or BMP";

/**
 * Decode an image file to upright pixels.
 *
 * The EXIF orientation is applied. Colour profiles are ignored, as in training. Transparent areas
 * become white. Of animations the first frame is taken; 16-bit images are rounded to 8 bits.
 *
 * @param {Blob} file
 * @returns {Promise<ImageBitmap>}
 * @throws {ImageError} If it is no image, is damaged, or the browser cannot open its format.
 */
export async function decode(file) {
  if (file.size === 0) throw new ImageError("This file is empty.");
  const head = new Uint8Array(await file.slice(0, 32).arrayBuffer());
  const start = String.fromCharCode(...head);
  const format = SIGNATURES.find(([signature]) => signature.test(start))?.[1];
  if (!format) throw new ImageError(`This file is not an image. Choose a ${SUPPORTED} file.`);
  try {
    return await createImageBitmap(file, {
      imageOrientation: "from-image",
      premultiplyAlpha: "none",
      colorSpaceConversion: "none",
    });
  } catch {
    throw new ImageError(
      SUPPORTED.includes(format) || format === "ICO"
        ? `This ${format} image is damaged, incomplete or too large for this browser.`
        : `This browser cannot open ${format} images. Save it as a ${SUPPORTED} file.`,
    );
  }
}

/**
 * Return a function that reads pixels of an image, on a white background; see `resizeCrop`.
 *
 * @param {ImageBitmap} image
 * @throws {ImageError} If the browser hides the true pixels from pages.
 */
export function reader(image) {
  requireTruePixels();
  return (left, top, width, height) => {
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
    context.drawImage(image, -left, -top);
    return context.getImageData(0, 0, width, height).data;
  };
}

/** Check that what is drawn is what is read: browsers that resist fingerprinting alter it. */
function requireTruePixels() {
  const context = new OffscreenCanvas(16, 16).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#7f3fbf";
  context.fillRect(0, 0, 16, 16);
  const { data } = context.getImageData(0, 0, 16, 16);
  if (!data.every((value, i) => value === [0x7f, 0x3f, 0xbf, 0xff][i % 4])) {
    throw new ImageError(
      "This browser hides the pixels of images from web pages, to resist fingerprinting. " +
        "Allow this page to read canvas data, then try again.",
    );
  }
}

// Anchors of matplotlib's "inferno": dark to bright in gray too, so it works without colour vision.
const COLOURS = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];

/**
 * Colour a class activation map for an overlay; transparent where nothing raises the class's score.
 *
 * Negative values count as 0, and the lowest value of the image becomes transparent, so that areas
 * without evidence do not glow.
 *
 * @param {Float32Array} map Contribution of each position to the logit, row by row.
 * @param {{height: number, width: number}} mapSize Size of the map.
 * @param {{height: number, width: number}} size Size of the overlay, px.
 * @returns {Uint8ClampedArray | null} RGBA pixels; null if no position raises the score.
 */
export function paintMap(map, mapSize, size) {
  const positive = map.map((value) => Math.max(0, value));
  const low = Math.min(...positive);
  const high = Math.max(...positive);
  if (high <= 0) return null;
  const range = high - low || high;
  const gray = Uint8ClampedArray.from(map, (_, i) => (255 * (positive[i] - low)) / range);
  const read = (left, top, width, height) => {
    const pixels = new Uint8ClampedArray(width * height * 4);
    for (let i = 0; i < width * height; i++) {
      const value = gray[(top + Math.floor(i / width)) * mapSize.width + left + (i % width)];
      pixels.fill(value, i * 4, i * 4 + 3);
    }
    return pixels;
  };
  const box = { left: 0, top: 0, ...mapSize };
  const smooth = resizeCrop(read, { box, size, corner: { left: 0, top: 0 }, crop: size }, "bicubic");
  const painted = new Uint8ClampedArray(size.height * size.width * 4);
  for (let i = 0; i < size.height * size.width; i++) {
    const position = (smooth[i * 3] / 255) * (COLOURS.length - 1);
    const below = Math.min(Math.floor(position), COLOURS.length - 2);
    for (let channel = 0; channel < 3; channel++) {
      const [a, b] = [COLOURS[below][channel], COLOURS[below + 1][channel]];
      painted[i * 4 + channel] = a + (b - a) * (position - below);
    }
    painted[i * 4 + 3] = smooth[i * 3];
  }
  return painted;
}

/** Return the indices and probabilities of the most likely classes, most likely first. */
export function topClasses(logits, count) {
  const largest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const exponentials = Float64Array.from(logits, (value) => Math.exp(value - largest));
  const sum = exponentials.reduce((a, b) => a + b, 0);
  return Array.from(exponentials, (value, index) => ({ index, score: value / sum }))
    .sort((a, b) => b.score - a.score)
    .slice(0, count);
}
