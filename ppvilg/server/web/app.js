// The page: what it shows follows `state`; each part has one function that draws it.

import { ApiError, getModel, postAnswers, postCaptions, postImages, setKey } from "./api.js";
import * as history from "./history.js";
import { base64, pictureIn, readPicture } from "./pictures.js";
import { examples, languageOf, say, styleLabel } from "./strings.js";

const LANGUAGE = "ppvilg.language";
const BEAMS = 4;
const OTHER_WORDS = 4; // captions that are drawn when other words are wanted
const CANDIDATES = [8, 16, 32, 64];

const $ = (id) => document.getElementById(id);

const state = {
  language: languageOf(localStorage.getItem(LANGUAGE) ?? navigator.language),
  model: null,
  tab: "draw",
  style: null,
  start: null, // { image: data URL, keepRows }
  shown: null, // the drawing on the stage, see `newDrawing`
  drawing: null, // the AbortController of the drawing that is under way
  reading: new Set(), // pictures of drawings for which a caption is under way
  described: { image: null, captions: [], phase: "empty", controller: null },
  notice: null, // { error, retry, until }
};

const t = (key, values) => say(state.language, key, values);
const grid = () => ({ rows: state.model?.rows ?? 8, columns: state.model?.columns ?? 8 });
const announce = (text) => ($("status").textContent = text);
const pictureUrl = (picture) => `data:image/png;base64,${picture.b64_json}`;

/** An element with properties (or attributes, for names with a dash) and children. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

// ---------------------------------------------------------------- language

function showWords() {
  document.documentElement.lang = state.language === "zh" ? "zh-CN" : "en";
  const targets = { i18n: "textContent", i18nPlaceholder: "placeholder", i18nAlt: "alt" };
  for (const [name, property] of Object.entries(targets)) {
    const attribute = name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
    for (const found of document.querySelectorAll(`[data-${attribute}]`)) found[property] = t(found.dataset[name]);
  }
  for (const found of document.querySelectorAll("[data-i18n-label]")) found.setAttribute("aria-label", t(found.dataset.i18nLabel));
  $("language").lang = state.language === "zh" ? "en" : "zh-CN";
}

function showAll() {
  showWords();
  showExamples();
  showModel();
  showStart();
  showValues();
  showStage();
  showDescribed();
  showHistory();
  showNotice();
}

function switchLanguage() {
  state.language = state.language === "zh" ? "en" : "zh";
  localStorage.setItem(LANGUAGE, state.language);
  showAll();
}

// ---------------------------------------------------------------- model

async function loadModel() {
  try {
    state.model = await getModel();
  } catch (error) {
    return showError(error, loadModel);
  }
  const { limits } = state.model;
  $("count").max = limits.n;
  $("count").value = Math.min(Number($("count").value), limits.n);
  $("prompt").maxLength = limits.prompt_characters;
  showModel();
  showStart();
  showStage();
  showHistory();
}

function showModel() {
  const { model } = state;
  showStyles();
  if (!model) return;
  $("guidance-field").hidden = !model.guidance;
  $("candidates-field").hidden = !model.dual_encoder;
  showCandidates(model.limits.candidates);
  showAdapters(model.adapters);
  const { rows, columns } = grid();
  document.documentElement.style.setProperty("--rows", rows);
  document.documentElement.style.setProperty("--columns", columns);
  $("version").textContent = t("footer.model", { size: model.image_size, tokens: model.image_tokens, version: model.version });
}

function showCandidates(limit) {
  const chosen = $("candidates").value || "0";
  const counts = CANDIDATES.filter((count) => count <= limit);
  const option = (value, text) => element("option", { value, textContent: text, selected: String(value) === chosen });
  const options = counts.map((count) => option(count, t("candidates.of", { count })));
  $("candidates").replaceChildren(option(0, t("candidates.off")), ...options);
}

function showAdapters(names) {
  const chosen = $("adapter").value;
  $("adapter-field").hidden = !names.length;
  const options = names.map((name) => element("option", { value: name, textContent: name, selected: name === chosen }));
  $("adapter").replaceChildren(element("option", { value: "", textContent: t("adapter.none") }), ...options);
}

function showStyles() {
  const styles = Object.entries(state.model?.styles ?? {});
  $("style-field").hidden = !styles.length;
  const chip = (value, text) => {
    const input = element("input", { type: "radio", name: "style", value, checked: (state.style ?? "") === value });
    input.addEventListener("change", () => (state.style = value || null));
    return element("label", { className: "chip" }, input, element("span", { textContent: text }));
  };
  const chips = styles.map(([name, templates]) => chip(name, styleLabel(name, templates, state.language)));
  $("styles").replaceChildren(chip("", t("style.none")), ...chips);
}

const styleName = (style) => (state.model?.styles[style] ? styleLabel(style, state.model.styles[style], state.language) : style);

function showExamples() {
  const chips = examples[state.language].map((example) => {
    const button = element("button", { type: "button", className: "chip", textContent: example });
    if (/[\u3400-\u9fff]/.test(example)) button.lang = "zh-CN";
    button.addEventListener("click", () => {
      $("prompt").value = example;
      $("prompt").focus();
    });
    return button;
  });
  $("examples").replaceChildren(...chips);
}

// ---------------------------------------------------------------- composer

function showValues() {
  $("temperature-value").textContent = Number($("temperature").value).toFixed(2);
  $("guidance-value").textContent = Number($("guidance").value).toFixed(2);
}

function showStart() {
  const { rows } = grid();
  $("start-pick").hidden = Boolean(state.start);
  $("start-given").hidden = !state.start;
  if (!state.start) return;
  state.start.keepRows = Math.min(state.start.keepRows, rows - 1);
  const { image, keepRows } = state.start;
  $("start-image").src = image;
  $("keep-rows").max = rows - 1;
  $("keep-rows").value = keepRows;
  $("keep-label").textContent = t("start.keep", { rows: keepRows, all: rows });
  $("start-rest").style.setProperty("top", `${(100 * keepRows) / rows}%`);
}

function setStart(image, keepRows = Math.floor(grid().rows / 2)) {
  state.start = image ? { image, keepRows } : null;
  showStart();
}

/** Start from a picture, in sight of the controls it belongs to. */
function startFrom(image) {
  setStart(image);
  selectTab("draw");
  $("start").scrollIntoView({ block: "nearest" });
  $("keep-rows").focus({ preventScroll: true });
}

async function startFromFile(file) {
  const image = await readOrTell(file);
  if (image) startFrom(image);
}

async function readOrTell(file) {
  dismiss();
  try {
    return await readPicture(file);
  } catch {
    showError(new ApiError("picture"));
    return null;
  }
}

/** What POST /v1/images gets, apart from the picture to start from. */
function readForm() {
  const form = {
    prompt: $("prompt").value.trim(),
    style: state.style,
    n: Number($("count").value),
    seed: $("seed").value === "" ? null : Number($("seed").value),
    temperature: Number($("temperature").value),
    top_k: Number($("top-k").value),
  };
  if (state.model?.guidance) form.guidance = Number($("guidance").value);
  const candidates = Number($("candidates").value);
  if (state.model?.dual_encoder && candidates) form.candidates = Math.max(candidates, form.n);
  if ($("adapter").value) form.lora = $("adapter").value;
  return form;
}

function fillForm(form) {
  $("prompt").value = form.prompt;
  $("count").value = form.n;
  $("temperature").value = form.temperature;
  $("top-k").value = form.top_k;
  $("guidance").value = form.guidance ?? 1;
  $("candidates").value = CANDIDATES.find((count) => count === form.candidates) ?? 0;
  $("adapter").value = state.model?.adapters.includes(form.lora) ? form.lora : "";
  state.style = form.style;
  showStyles();
  showValues();
}

/** A number of pictures that the server draws. */
const clamped = (count) => Math.min(Math.max(count, 1), Number($("count").max));

function step(change) {
  $("count").value = clamped(Number($("count").value) + change);
  if (!state.shown) showStage();
}

// ---------------------------------------------------------------- drawing

/** A drawing: its form, the picture it starts from, and how far it is. */
const newDrawing = (form, start) => ({
  id: crypto.randomUUID?.() ?? String(Date.now() + Math.random()),
  form,
  start,
  phase: "waiting", // growing, done, cancelled, failed
  tokens: 0,
  of: state.model?.image_tokens ?? 64,
  seed: null,
  prompt: form.prompt,
  place: null, // drawings before it, while it waits
  data: [],
  ready: {}, // pictures that are done before the others, by number
});

function submitForm() {
  if (state.drawing) return;
  const form = readForm();
  if (!form.prompt) {
    showError(new ApiError("empty"));
    $("prompt").focus();
    return;
  }
  if ($("advanced").querySelector(":invalid")) $("advanced").open = true;
  if (!$("composer").reportValidity()) return;
  draw(newDrawing(form, state.start && { ...state.start }));
}

async function draw(drawing) {
  dismiss();
  state.drawing = new AbortController();
  state.shown = drawing;
  showStage();
  announce(t("status.drawing"));
  if (matchMedia("(max-width: 899px)").matches) $("stage").scrollIntoView({ block: "start" });
  try {
    const body = { ...drawing.form };
    if (drawing.start) Object.assign(body, { image: base64(drawing.start.image), keep_rows: drawing.start.keepRows });
    const answer = await postImages(body, state.drawing.signal, {
      place: ({ place }) => change(drawing, { place }),
      partial: (partial) => change(drawing, { phase: "growing", ...partial }),
      picture: ({ index, ...picture }) => change(drawing, { phase: "growing", ready: { ...drawing.ready, [index]: picture } }),
    });
    finish(drawing, answer);
  } catch (error) {
    giveUp(drawing, error);
  } finally {
    state.drawing = null;
    if (state.shown === drawing) showStage();
    else showButtons();
  }
}

/** What an event says of a drawing. */
function change(drawing, what) {
  const before = drawing.phase;
  Object.assign(drawing, what);
  if (state.shown !== drawing) return;
  if (drawing.phase !== before) showStage();
  else showProgress();
}

function finish(drawing, { seed, prompt, data }) {
  Object.assign(drawing, { phase: "done", tokens: drawing.of, seed, prompt, data, ready: {} });
  history.add(drawing);
  showHistory();
  announce(t("status.done", { count: data.length, seed }));
}

function giveUp(drawing, error) {
  drawing.phase = error.name === "AbortError" ? "cancelled" : "failed";
  if (drawing.phase === "cancelled") announce(t("status.cancelled"));
  else showError(error, () => draw(newDrawing(drawing.form, drawing.start)));
}

// ---------------------------------------------------------------- stage

function showStage() {
  const { shown } = state;
  showButtons();
  $("stage").setAttribute("aria-busy", underWay(shown));
  $("stage").classList.toggle("empty", !shown);
  $("stage-title").textContent = shown ? shown.prompt : t("stage.empty");
  const length = shown ? shown.form.n : clamped(Number($("count").value));
  $("tiles").dataset.count = length;
  $("tiles").replaceChildren(...Array.from({ length }, (_, i) => (shown ? tile(shown, i) : emptyTile())));
  showProgress();
}

function showButtons() {
  const busy = Boolean(state.drawing);
  const focused = document.activeElement === $("submit") || document.activeElement === $("cancel");
  $("submit").hidden = busy;
  $("cancel").hidden = $("cancel-here").hidden = !busy;
  if (focused) (busy ? $("cancel") : $("submit")).focus();
}

/** Whether pictures still come. */
const underWay = (drawing) => drawing?.phase === "waiting" || drawing?.phase === "growing";

function emptyTile() {
  return element("div", { className: "tile" }, element("div", { className: "frame" }));
}

/** What of the shown drawing changes with each token. */
function showProgress() {
  const { shown } = state;
  showMeta(shown);
  $("progress").hidden = !underWay(shown);
  if (!shown) return;
  if (shown.phase === "waiting") $("progress").removeAttribute("value");
  else $("progress").value = shown.tokens / shown.of;
  [...$("tiles").children].forEach((made, i) => showPicture(made.querySelector("img"), shown, i));
}

function showMeta(shown) {
  const meta = $("stage-meta");
  if (shown?.phase !== "done") return meta.replaceChildren(t(`stage.${metaKey(shown)}`, shown ?? {}));
  meta.replaceChildren(shown.start ? `${t("history.completed")} · ` : "", seedButton(shown.seed));
}

function metaKey(shown) {
  if (!shown) return "empty.meta";
  if (shown.phase === "waiting" && shown.place !== null) return shown.place ? "place" : "next";
  return shown.phase === "cancelled" && !shown.tokens ? "cancelled.early" : shown.phase;
}

function seedButton(seed, textContent = t("stage.seed", { seed })) {
  const label = t("seed.use", { seed });
  const button = element("button", { type: "button", className: "link seed", textContent, title: label, "aria-label": label });
  button.addEventListener("click", () => {
    $("seed").value = seed;
    $("seed").focus();
  });
  return button;
}

function showPicture(image, shown, i) {
  const ready = shown.ready?.[i]; // drawings of before may have none
  const picture = ready ?? shown.data[i];
  const url = picture ? pictureUrl(picture) : shown.start?.image;
  image.hidden = !url;
  if (!url) return;
  if (image.src !== url) image.src = url;
  const tokens = picture ? shown.tokens : shown.start.keepRows * grid().columns;
  image.style.setProperty("clip-path", shown.phase === "done" || ready ? "none" : written(tokens));
}

/** The outline of the tokens that are written, row by row; always six corners, so that it can be animated. */
function written(tokens) {
  const { rows, columns } = grid();
  const full = Math.floor(tokens / columns) / rows;
  const below = Math.ceil(tokens / columns) / rows;
  const right = (tokens % columns) / columns || 1;
  const corners = [[0, 0], [1, 0], [1, full], [right, full], [right, below], [0, below]];
  return `polygon(${corners.map(([x, y]) => `${100 * x}% ${100 * y}%`).join(", ")})`;
}

function tile(shown, i) {
  const number = i + 1;
  const alt = t("picture.alt", { prompt: shown.prompt, number });
  const frame = element("div", { className: "frame" }, element("img", { alt, hidden: true }));
  const made = element("figure", { className: "tile" }, frame);
  if (shown.phase !== "done" || !shown.data[i]) return made;
  made.append(tileActions(shown, i, number), tileNotes(shown.data[i]));
  return made;
}

function tileActions(shown, i, number) {
  const picture = shown.data[i];
  const save = element("a", { href: pictureUrl(picture), download: fileName(shown, picture), className: "action" });
  label(save, "download", "picture.download", number);
  const extend = element("button", { type: "button", className: "action" });
  label(extend, "continue", "picture.continue", number);
  extend.addEventListener("click", () => startFrom(pictureUrl(picture)));
  const describe = element("button", { type: "button", className: "action describe", "aria-disabled": Boolean(picture.captions) });
  label(describe, "describe", "picture.describe", number);
  describe.addEventListener("click", () => describeTile(picture));
  return element("div", { className: "actions" }, save, extend, describe);
}

function label(action, iconName, key, number) {
  const words = t(`${key}.label`, { number });
  action.append(icon(iconName), element("span", { textContent: t(key) }));
  action.setAttribute("aria-label", words);
  action.title = words;
}

const fileName = (shown, picture) => `${shown.prompt.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60)}-${picture.seed}.png`;

function tileNotes(picture) {
  const notes = element("figcaption", { className: "notes" });
  if (state.reading.has(picture)) notes.append(element("p", { className: "hint", textContent: t("picture.describing") }));
  for (const { text } of picture.captions ?? []) notes.append(element("p", { className: "said", textContent: text || t("captions.none") }));
  const score = typeof picture.score === "number" ? element("span", { className: "hint", textContent: fits(picture.score) }) : null;
  notes.append(element("div", { className: "facts" }, score, seedButton(picture.seed, `#${picture.seed}`)));
  return notes;
}

const fits = (score) => t("picture.score", { score: Math.round(100 * score) });

async function describeTile(picture) {
  if (state.reading.has(picture) || picture.captions) return;
  const { shown } = state;
  dismiss();
  state.reading.add(picture);
  showNotes(picture);
  try {
    const { captions } = await postCaptions({ image: picture.b64_json, n: 1, beams: beams() });
    picture.captions = captions;
    history.save();
    announce(captions.map(({ text }) => text).join(", "));
  } catch (error) {
    showError(error, () => describeTile(picture), "describe");
  } finally {
    state.reading.delete(picture);
    if (state.shown === shown) showNotes(picture);
  }
}

/** Only this picture's notes change: whoever has the focus keeps it. */
function showNotes(picture) {
  const i = state.shown.data.indexOf(picture);
  const shown = $("tiles").children[i];
  shown?.querySelector(".notes")?.replaceWith(tileNotes(picture));
  shown?.querySelector(".describe")?.setAttribute("aria-disabled", state.reading.has(picture) || Boolean(picture.captions));
}

const beams = () => Math.min(BEAMS, state.model?.limits.candidates ?? BEAMS);

// ---------------------------------------------------------------- describing

async function describeFile(file) {
  selectTab("describe");
  const image = await readOrTell(file);
  if (image) describe(image);
}

/** The likeliest caption of a picture. */
function describe(image) {
  Object.assign(state.described, { image, captions: [], phase: "reading" });
  return addCaptions({ n: 1, beams: beams() });
}

/** More captions of the same picture, drawn at random. */
const describeInOtherWords = () => addCaptions({ n: Math.min(OTHER_WORDS, state.model?.limits.n ?? OTHER_WORDS), temperature: 1 });

/** The likeliest answer to the question that was typed. */
function ask() {
  const question = $("question").value.trim();
  if (question && state.described.image) addCaptions({ question, n: 1, beams: beams() });
}

async function addCaptions(options) {
  const { described } = state;
  dismiss();
  described.controller?.abort();
  const controller = new AbortController();
  Object.assign(described, { phase: "reading", controller });
  showDescribed();
  try {
    const post = options.question ? postAnswers : postCaptions;
    const answer = await post({ image: base64(described.image), ...options }, controller.signal);
    const known = new Set(described.captions.map(said));
    for (const entry of answer.captions ?? answer.answers) {
      const caption = { ...entry, question: options.question };
      if (caption.text && !known.has(said(caption))) described.captions.push(caption);
      known.add(said(caption));
    }
    described.phase = "done";
    announce(t("status.described"));
  } catch (error) {
    if (error.name === "AbortError") return;
    described.phase = described.captions.length ? "done" : "failed";
    showError(error, () => addCaptions(options), "describe");
  }
  showDescribed();
}

function showDescribed() {
  const { image, captions, phase } = state.described;
  $("describe-image").hidden = !image;
  if (image) $("describe-image").src = image;
  $("drop").classList.toggle("filled", Boolean(image));
  $("drop-title").textContent = t(image ? "describe.again" : "describe.pick");
  const status = { empty: "captions.empty", reading: "captions.reading", done: captions.length ? null : "captions.none" }[phase];
  $("captions-status").textContent = status ? t(status) : "";
  $("captions-status").hidden = !status;
  $("captions").replaceChildren(...captions.map(captionItem));
  $("caption-actions").hidden = !image;
  $("captions-more").disabled = phase !== "done";
  $("ask").hidden = !image || !state.model?.max_question;
  $("question-ask").disabled = phase === "reading";
}

/** A caption, or a question and its answer. */
const said = ({ text, question }) => (question ? `${question} ${text}` : text);

function captionItem(caption) {
  const { text, score, question } = caption;
  const words = element("span", { className: "said", textContent: said(caption) });
  if (question) return element("li", {}, words);
  const again = element("button", { type: "button", className: "link", textContent: t("captions.draw") });
  again.addEventListener("click", () => {
    $("prompt").value = text;
    state.style = null;
    showStyles();
    selectTab("draw");
    $("prompt").focus();
  });
  const hint = typeof score === "number" ? element("span", { className: "hint", textContent: fits(score) }) : null;
  return element("li", {}, words, hint, again);
}

// ---------------------------------------------------------------- history

function showHistory() {
  const entries = history.all();
  $("history").hidden = !entries.length;
  $("history-list").replaceChildren(...entries.map((entry) => element("li", {}, historyButton(entry))));
}

function historyButton(entry) {
  const images = entry.data.slice(0, 4).map((picture) => element("img", { src: pictureUrl(picture), alt: "" }));
  const facts = [entry.start && t("history.completed"), styleName(entry.form.style)].filter(Boolean);
  const button = element(
    "button",
    { type: "button", className: "past", "aria-label": t("history.restore", { prompt: entry.prompt }) },
    element("span", { className: `thumbs of-${images.length}` }, ...images),
    element("span", { className: "past-prompt", textContent: entry.form.prompt }),
    element("span", { className: "hint", textContent: facts.join(" · ") }),
    element("span", { className: "hint", textContent: `#${entry.seed}` }),
  );
  button.addEventListener("click", () => restore(entry));
  return button;
}

function restore(entry) {
  dismiss();
  fillForm(entry.form);
  $("seed").value = entry.seed;
  setStart(entry.start?.image, entry.start?.keepRows);
  state.shown = entry;
  selectTab("draw");
  showStage();
  $("stage").scrollIntoView({ block: "nearest" });
}

function clearHistory() {
  history.clear();
  showHistory();
  $("prompt").focus();
}

// ---------------------------------------------------------------- notices

/** Say what went wrong; `retry` does it again, unless the server would only refuse it again. */
function showError(error, retry = null, task = "draw") {
  if (!(error instanceof ApiError)) console.error(error);
  if (error.status === 401) askForKey(error, retry);
  else tell(error, retry, task);
}

function tell(error, retry, task = "draw") {
  const until = error.retryAfter === null || error.retryAfter === undefined ? 0 : Date.now() + 1000 * error.retryAfter;
  clearInterval(state.notice?.timer);
  if ([400, 413, 422].includes(error.status)) retry = null;
  state.notice = { error, retry, task, until, timer: until ? setInterval(countDown, 1000) : 0 };
  showNotice();
  $("notice").scrollIntoView({ block: "nearest" });
}

function dismiss() {
  clearInterval(state.notice?.timer);
  state.notice = null;
  showNotice();
}

function showNotice() {
  const { notice } = state;
  $("notice").hidden = !notice;
  if (!notice) return $("notice").replaceChildren();
  const [title, ...details] = errorWords(notice);
  const text = element("div", {}, element("strong", { textContent: title }), ...details.map((detail) => element("p", { textContent: detail })));
  const close = element("button", { type: "button", className: "quiet", "aria-label": t("error.dismiss") }, icon("close"));
  close.addEventListener("click", dismiss);
  $("notice").replaceChildren(text, notice.retry ? retryButton(notice.retry) : "", close);
  countDown();
}

function retryButton(retry) {
  const button = element("button", { type: "button", className: "secondary", id: "retry" });
  button.addEventListener("click", () => !state.drawing && retry());
  return button;
}

function errorWords({ error, task }) {
  if (error.kind === "network") return [t("error.network"), t("error.network.detail")];
  if (error.kind === "picture") return [t("error.picture"), t("error.picture.detail")];
  if (error.kind === "empty" || error.kind === "broken") return [t(`error.${error.kind}`)];
  const status = error.status === 400 ? 422 : error.status;
  const known = [401, 413, 422, 429, 503, 504].includes(status) ? status : "other";
  const title = t(known === 422 && task === "describe" ? "error.422.describe" : `error.${known}`);
  const wait = error.retryAfter ? t("error.retry.after", { seconds: error.retryAfter }) : null;
  return [title, error.message, wait].filter(Boolean);
}

/** The button counts the seconds; screen readers hear only the sentence above it. */
function countDown() {
  const button = $("retry");
  if (!button || !state.notice) return;
  const seconds = Math.ceil((state.notice.until - Date.now()) / 1000);
  button.disabled = seconds > 0;
  button.textContent = seconds > 0 ? t("error.retry.in", { seconds }) : t("error.retry");
  if (seconds <= 0) clearInterval(state.notice.timer);
}

function askForKey(error, retry) {
  const dialog = $("key-dialog");
  $("key-message").textContent = error.message;
  $("key").value = "";
  dialog.returnValue = "";
  dialog.onclose = () => (dialog.returnValue === "use" ? useKey(retry) : tell(error, retry));
  if (!dialog.open) dialog.showModal();
}

function useKey(retry) {
  setKey($("key").value.trim());
  if (!state.model) loadModel();
  if (retry && retry !== loadModel) retry();
}

// ---------------------------------------------------------------- tabs and events

function selectTab(name) {
  state.tab = name;
  for (const other of ["draw", "describe"]) {
    const selected = other === name;
    $(other).hidden = !selected;
    $(`tab-${other}`).setAttribute("aria-selected", selected);
    $(`tab-${other}`).tabIndex = selected ? 0 : -1;
  }
  $(name).querySelector(".side").append($("history"));
}

function onTabKey(event) {
  if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
  selectTab(state.tab === "draw" ? "describe" : "draw");
  $(`tab-${state.tab}`).focus();
}

/** Enter draws; not while an input method composes Chinese characters. */
function onPromptKey(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  submitForm();
}

function takeFiles(input, use) {
  input.addEventListener("change", () => {
    const [file] = input.files;
    input.value = "";
    if (file) use(file);
  });
}

function listenToDrops() {
  const overlay = $("drop-overlay");
  const isFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const onStart = (event) => $("start").contains(event.target);
  document.addEventListener("dragover", (event) => {
    if (!isFile(event)) return;
    event.preventDefault();
    $("start").classList.toggle("over", onStart(event));
    overlay.hidden = onStart(event);
  });
  const leave = () => {
    overlay.hidden = true;
    $("start").classList.remove("over");
  };
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && leave());
  document.addEventListener("drop", (event) => {
    if (!isFile(event)) return;
    event.preventDefault();
    leave();
    const file = pictureIn(event.dataTransfer);
    if (!file) showError(new ApiError("picture"));
    else if (onStart(event)) startFromFile(file);
    else describeFile(file);
  });
  document.addEventListener("paste", (event) => {
    const file = pictureIn(event.clipboardData);
    const words = event.target.matches("textarea, input") && event.clipboardData.types.includes("text/plain");
    if (!file || words) return;
    event.preventDefault();
    describeFile(file);
  });
}

function listen() {
  const on = (id, type, action) => $(id).addEventListener(type, action);
  on("language", "click", switchLanguage);
  on("composer", "submit", (event) => {
    event.preventDefault();
    submitForm();
  });
  on("prompt", "keydown", onPromptKey);
  for (const id of ["cancel", "cancel-here"]) on(id, "click", () => state.drawing?.abort());
  on("fewer", "click", () => step(-1));
  on("more", "click", () => step(1));
  on("temperature", "input", showValues);
  on("guidance", "input", showValues);
  on("keep-rows", "input", () => setStart(state.start.image, Number($("keep-rows").value)));
  on("start-remove", "click", () => setStart(null));
  on("captions-more", "click", describeInOtherWords);
  on("captions-start", "click", () => startFrom(state.described.image));
  on("ask", "submit", (event) => {
    event.preventDefault();
    ask();
  });
  on("key-cancel", "click", () => $("key-dialog").close(""));
  on("history-clear", "click", clearHistory);
  for (const name of ["draw", "describe"]) {
    on(`tab-${name}`, "click", () => selectTab(name));
    on(`tab-${name}`, "keydown", onTabKey);
  }
  takeFiles($("start-file"), startFromFile);
  takeFiles($("describe-file"), describeFile);
  document.addEventListener("keydown", (event) => event.key === "Escape" && !$("key-dialog").open && state.drawing?.abort());
  listenToDrops();
}

listen();
showAll();
loadModel();
