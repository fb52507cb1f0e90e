// Picture files that a user gives, made fit to be sent.

const SENT_AS_IS = new Set(["image/png", "image/jpeg", "image/webp"]);
const LARGE = 2 ** 20; // bytes above which a picture is scaled down first; the model sees far less of it
const SIDE = 1024;

/** A data: URL of a picture file; large or unusual ones are scaled down and written anew. Throws for what is no picture. */
export async function readPicture(file) {
  const bitmap = await createImageBitmap(file);
  const { width, height } = bitmap;
  if (SENT_AS_IS.has(file.type) && file.size <= LARGE && width * height <= SIDE * SIDE * 4) return dataUrl(file);
  const scale = Math.min(1, SIDE / Math.min(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.95);
}

/** The base64 part of a data: URL. */
export const base64 = (url) => url.slice(url.indexOf(",") + 1);

/** The first picture among dropped or pasted files. */
export const pictureIn = (transfer) => [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/"));

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
