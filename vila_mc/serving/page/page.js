"use strict";
// Everything that is shown goes in as text, never as HTML.

const at = (id) => document.getElementById(id);
const messages = []; // of the conversation, as they are sent
let images = []; // data: URLs of the next question
let answering = null; // an AbortController

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function picture(url, name) {
  const shown = element("img");
  shown.src = url;
  shown.alt = name;
  return shown;
}

function bubble(className, text) {
  at("empty").hidden = true;
  const made = element("article", className);
  made.append(element("p", "", text));
  at("talk").append(made);
  made.scrollIntoView({ block: "end" });
  return made;
}

function showImages() {
  at("images").replaceChildren(...images.map((url, index) => {
    const item = element("li");
    const remove = element("button", "", "\u00d7");
    remove.type = "button";
    remove.ariaLabel = `Remove image ${index + 1}`;
    remove.addEventListener("click", () => {
      images.splice(index, 1);
      showImages();
      at("question").focus();
    });
    item.append(picture(url, `image ${index + 1}`), remove);
    return item;
  }));
}

function asUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

async function addFiles(files) {
  try {
    for (const file of files) {
      if (file.type.startsWith("image/")) images.push(await asUrl(file));
      else bubble("wrong", `${file.name} is no image.`);
    }
  } catch (error) {
    bubble("wrong", `The file cannot be read: ${error.message}`);
  }
  showImages();
  at("question").focus();
}

function setAnswering(controller) {
  answering = controller;
  at("send").hidden = controller !== null;
  at("stop").hidden = controller === null;
  at("state").textContent = controller ? "waiting \u2026" : "";
}

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function figures(usage, started, first, reason) {
  const now = performance.now();
  const rest = usage.completion_tokens - 1;
  const said = [`${usage.completion_tokens} tokens`];
  if (rest > 0) said.push(`${(1000 * rest / Math.max(now - first, 1)).toFixed(1)} tokens/s`);
  said.push(`first after ${((first - started) / 1000).toFixed(2)} s`);
  said.push(`prompt of ${usage.prompt_tokens}`);
  if (reason === "length") said.push("cut: it would have gone on");
  return said.join(" \u00b7 ");
}

async function answer(controller, shown) {
  const started = performance.now();
  let first = started, text = "", reason = "";
  const settings = { messages, stream: true, stream_options: { include_usage: true } };
  settings.temperature = Number(at("temperature").value);
  settings.max_tokens = Number(at("tokens").value);
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(settings),
    signal: controller.signal,
  });
  if (!response.ok) throw new Error((await response.json()).error.message);
  const words = shown.querySelector("p");
  try {
    for await (const event of eventsOf(response)) {
      if (event.error) throw new Error(event.error.message);
      if (event.usage) {
        shown.append(element("p", "figures", figures(event.usage, started, first, reason)));
        continue;
      }
      const choice = event.choices[0];
      reason = choice.finish_reason ?? reason;
      if (!choice.delta.content) continue;
      if (!text) first = performance.now();
      text += choice.delta.content;
      words.textContent = text;
      at("state").textContent = "answering \u2026";
      shown.scrollIntoView({ block: "end" });
    }
  } catch (error) {
    if (error.name !== "AbortError") throw error;
    shown.append(element("p", "figures", "stopped"));
  }
  return text;
}

async function ask() {
  const question = at("question").value.trim();
  if (answering || (!question && !images.length)) return;
  const parts = images.map((url) => ({ type: "image_url", image_url: { url } }));
  if (question) parts.push({ type: "text", text: question });
  const mine = bubble("user", question);
  mine.prepend(...images.map((url, index) => picture(url, `image ${index + 1}`)));
  messages.push({ role: "user", content: parts });
  at("question").value = "";
  images = [];
  showImages();
  const shown = bubble("assistant coming", "");
  const controller = new AbortController();
  setAnswering(controller);
  const asked = messages.length;
  let text = "";
  try {
    text = await answer(controller, shown);
  } catch (error) {
    shown.classList.add("wrong");
    shown.querySelector("p").textContent =
      error.name === "AbortError" ? "stopped" : error.message;
  }
  shown.classList.remove("coming");
  shown.scrollIntoView({ block: "end" });
  if (answering !== controller) return; // a new conversation was begun
  // A question without an answer is not part of the conversation.
  if (text.trim()) messages.push({ role: "assistant", content: text });
  else messages.length = asked - 1;
  setAnswering(null);
  at("question").focus();
}

function startAnew() {
  answering?.abort();
  messages.length = 0;
  images = [];
  showImages();
  at("talk").replaceChildren(at("empty"));
  at("empty").hidden = false;
  setAnswering(null);
  at("question").focus();
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask();
  }
});
at("stop").addEventListener("click", () => answering?.abort());
at("new").addEventListener("click", startAnew);
at("files").addEventListener("change", (event) => {
  addFiles([...event.target.files]);
  event.target.value = "";
});
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) addFiles(files);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
document.addEventListener("dragleave", () => at("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  addFiles([...event.dataTransfer.files]);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") answering?.abort();
});

fetch("/v1/models").then((response) => response.json()).then((models) => {
  at("model").textContent = models.data[0].id;
  document.title = `${models.data[0].id} \u00b7 vila_mc`;
});
