// The server's API. Paths are relative to the page, so that it may be served below any prefix.

const KEY = "ppvilg.key";

/** What went wrong: `kind` is "status", "network" or "broken" (the answer ended too early). */
export class ApiError extends Error {
  constructor(kind, { status = 0, code = "", message = "", retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { kind, status, code, retryAfter });
  }
}

export const setKey = (key) => sessionStorage.setItem(KEY, key);

/** The model and its limits. */
export const getModel = () => request("v1/model").then((response) => response.json());

/** Captions of a picture in base64. */
export const postCaptions = (body, signal) => request("v1/captions", body, signal).then((response) => response.json());

/** Answers to a question about a picture in base64. */
export const postAnswers = (body, signal) => request("v1/answers", body, signal).then((response) => response.json());

/** Pictures; `on` has a function for each kind of event before the last, place, partial and picture, which gets its data; the
 * result is the done event's. */
export async function postImages(body, signal, on) {
  const response = await request("v1/images", { ...body, response_format: "b64_json", stream: true }, signal);
  if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) return response.json();
  for await (const { event, data } of events(response.body)) {
    on[event]?.(data);
    if (event === "done") return data;
    if (event === "error") throw new ApiError("status", { status: statusOf(data.error), ...data.error });
  }
  throw new ApiError("broken");
}

async function request(path, body, signal) {
  const headers = { Accept: "text/event-stream, application/json" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const options = { method: body ? "POST" : "GET", headers, signal, credentials: "same-origin", cache: "no-store" };
  if (body) options.body = JSON.stringify(body);
  const response = await fetch(new URL(path, document.baseURI), options).catch(failed);
  if (response.ok) return response;
  const { error = {} } = await response.json().catch(() => ({}));
  const retryAfter = seconds(response.headers.get("Retry-After"));
  throw new ApiError("status", { status: response.status, code: error.code, message: error.message, retryAfter });
}

/** Server-sent events of a stream, with their data read as JSON. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => failed(error, "broken"));
    if (done) return;
    const blocks = (rest + value.replaceAll("\r", "")).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const values = (name) => lines.filter((line) => line.startsWith(name)).map((line) => line.slice(name.length).trim());
      const data = values("data:").join("\n");
      if (data) yield { event: values("event:")[0] ?? "message", data: JSON.parse(data) };
    }
  }
}

function failed(error, kind = "network") {
  throw error.name === "AbortError" ? error : new ApiError(kind);
}

// An event has no HTTP status of its own; its code says the same.
const statusOf = (error) => ({ invalid_request: 422, overloaded: 503, deadline: 504 })[error?.code] ?? 500;

// Retry-After is a number of seconds or a date.
function seconds(header) {
  if (!header) return null;
  const value = /^\d+$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(value) ? Math.max(0, Math.ceil(value)) : null;
}
