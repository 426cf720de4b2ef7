/** The chosen image, drawn and not linked: the page's policy allows no picture from elsewhere. */
import { html, useEffect, useRef } from "../vendor/preact-htm.js";
import { image as texts } from "../texts.js";

const LONGEST_PX = 450;

/** @param {{image: {name: string, bitmap: ImageBitmap}}} props */
export function PreviewCanvas({ image }) {
  const canvas = useRef();
  const { bitmap } = image;
  const scale = Math.min(1, LONGEST_PX / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
  useEffect(() => {
    canvas.current.getContext("2d").drawImage(bitmap, 0, 0, width, height);
  }, [bitmap]);
  return html`<canvas class="preview" ref=${canvas} width=${width} height=${height} role="img" aria-label=${texts.preview(image.name)} />`;
}
