// A conversation: streamed, stopped, regenerated, edited. It lives in this page alone; settings are kept.

const byId = (id) => document.getElementById(id);
const FIELDS = { system: String, temperature: Number, top_p: Number, max_tokens: Number, seed: Number };
const EXAMPLES = ["What is activation sparsity?", "Who are you?", "Tell me a short story about a fox."];
const THEMES = ["auto", "light", "dark"];

const turns = []; // {role, content, note, error}
let answering = null; // the AbortController of the answer that is being written

// -- Settings and colours

const stored = () => JSON.parse(localStorage.getItem("turbosparse.settings") ?? "{}");

function loadSettings() {
  for (const name of Object.keys(FIELDS)) byId(name).value = stored()[name] ?? "";
}

function saveSettings() {
  const settings = {};
  for (const [name, type] of Object.entries(FIELDS)) {
    const value = byId(name).value.trim();
    if (value !== "" && byId(name).checkValidity()) settings[name] = type(value);
  }
  localStorage.setItem("turbosparse.settings", JSON.stringify(settings));
}

function applyTheme(theme) {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = theme === "auto" ? (dark ? "dark" : "light") : theme;
  const says = { auto: "Colours: system", light: "Colours: light", dark: "Colours: dark" };
  byId("theme").textContent = { auto: "◐", light: "○", dark: "●" }[theme];
  byId("theme").title = says[theme];
  byId("theme").setAttribute("aria-label", says[theme]);
}

const theme = () => localStorage.getItem("turbosparse.theme") ?? "auto";

function nextTheme() {
  localStorage.setItem("turbosparse.theme", THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length]);
  applyTheme(theme());
}

// -- Drawing the conversation

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function button(text, act, label) {
  const made = element("button", "", text);
  made.type = "button";
  if (label) made.setAttribute("aria-label", label);
  made.addEventListener("click", act);
  return made;
}

// Fenced code becomes a block of its own; nothing else is interpreted, and nothing becomes HTML.
function fill(node, content) {
  node.replaceChildren();
  content.split(/^```.*$\n?/m).forEach((part, i) => {
    if (i % 2 === 0) {
      if (part) node.append(part);
      return;
    }
    const block = element("pre");
    block.append(element("code", "", part.replace(/\n$/, "")));
    node.append(block);
  });
}

function draw(turn, i) {
  const item = element("li", turn.role);
  item.append(element("span", "unseen", turn.role === "user" ? "You: " : "Model: "));
  const text = element("div", "text");
  fill(text, turn.content);
  item.append(text);
  if (turn.error) item.append(element("p", "error", turn.error));
  const tools = element("div", "tools");
  if (turn.role === "user") {
    tools.append(button("Edit", () => edit(i), "Edit this message"));
  } else {
    tools.append(button("Regenerate", () => regenerate(i), "Regenerate this answer"));
    tools.append(button("Copy", () => copy(turn.content), "Copy this answer"));
    if (turn.note) tools.append(element("span", "speed", turn.note));
  }
  item.append(tools);
  return item;
}

function drawAll() {
  byId("messages").replaceChildren(...turns.map(draw));
  byId("empty").hidden = turns.length > 0;
  follow(true);
}

// Keep the end in sight, unless its reader has scrolled away from it.
function follow(always) {
  const view = byId("conversation");
  const near = view.scrollHeight - view.scrollTop - view.clientHeight < 120;
  if (always || near) view.scrollTop = view.scrollHeight;
}

function setAnswering(controller) {
  answering = controller;
  byId("send").textContent = controller ? "Stop" : "Send";
  for (const tool of document.querySelectorAll(".tools button")) tool.disabled = Boolean(controller);
}

// -- Talking to the server

async function* chunks(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

function body() {
  const { system, ...sampling } = stored();
  const messages = turns.filter((turn) => turn.content).map(({ role, content }) => ({ role, content }));
  if (system) messages.unshift({ role: "system", content: system });
  return { messages, ...sampling, stream: true, stream_options: { include_usage: true } };
}

async function stream(turn, signal, onText) {
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body()),
    signal,
  });
  if (!response.ok) throw new Error((await response.json()).error.message);
  const started = performance.now();
  let first = 0;
  for await (const chunk of chunks(response)) {
    if (chunk.error) throw new Error(chunk.error.message);
    if (chunk.usage) turn.note = note(chunk.usage.completion_tokens, performance.now() - (first || started));
    const text = chunk.choices?.[0]?.delta.content;
    if (!text) continue;
    first ||= performance.now();
    turn.content += text;
    onText();
  }
}

function note(numTokens, milliseconds) {
  const speed = (numTokens - 1) / (milliseconds / 1000);
  const rate = numTokens > 1 && Number.isFinite(speed) ? ` · ${Math.round(speed)} tokens/s` : "";
  return `${numTokens} ${numTokens === 1 ? "token" : "tokens"}${rate}`;
}

async function answer() {
  const turn = { role: "assistant", content: "" };
  turns.push(turn);
  drawAll();
  const item = byId("messages").lastElementChild;
  const text = item.querySelector(".text");
  item.classList.add("streaming");
  item.setAttribute("aria-busy", "true");
  setAnswering(new AbortController());
  let painted = false;
  const paint = () => {
    painted = false;
    fill(text, turn.content);
    follow(false);
  };
  try {
    await stream(turn, answering.signal, () => {
      if (!painted) requestAnimationFrame(paint);
      painted = true;
    });
    byId("announce").textContent = "The answer is complete.";
  } catch (error) {
    if (error.name === "AbortError") turn.note = "stopped";
    else turn.error = error.message;
    byId("announce").textContent = turn.error ?? "Stopped.";
  }
  setAnswering(null);
  drawAll();
  byId("prompt").focus();
}

// -- What the user does

function submit(text) {
  if (!text.trim() || answering) return;
  turns.push({ role: "user", content: text.trim() });
  answer();
}

function stop() {
  answering?.abort();
}

function regenerate(i) {
  if (answering) return;
  turns.length = i;
  answer();
}

function edit(i) {
  if (answering) return;
  const item = byId("messages").children[i];
  const form = element("form", "edit");
  const field = element("textarea");
  field.value = turns[i].content;
  field.rows = Math.min(8, field.value.split("\n").length + 1);
  field.setAttribute("aria-label", "Edit your message");
  const row = element("p");
  const send = element("button", "primary", "Send");
  send.type = "submit";
  row.append(button("Cancel", drawAll), send);
  form.append(field, row);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!field.value.trim()) return;
    turns.length = i;
    submit(field.value);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") drawAll();
    if (sends(event)) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  item.replaceChildren(form);
  field.focus();
}

async function copy(text) {
  await navigator.clipboard.writeText(text);
  byId("announce").textContent = "Copied.";
}

function restart() {
  stop();
  turns.length = 0;
  drawAll();
  byId("prompt").focus();
}

const sends = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;

function fitPrompt() {
  const prompt = byId("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight + 2}px`;
}

async function showModel() {
  const answer = await fetch("v1/models");
  if (!answer.ok) return;
  const [model] = (await answer.json()).data;
  byId("model").textContent = document.title = model.id;
  const badge = byId("function");
  badge.hidden = false;
  badge.textContent = model.exact ? "exact" : "approximate";
  badge.title = model.approximation ?? "computes exactly what the checkpoint defines";
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (answering) {
    stop();
    return;
  }
  const prompt = byId("prompt");
  submit(prompt.value);
  prompt.value = "";
  fitPrompt();
});
byId("prompt").addEventListener("input", fitPrompt);
byId("prompt").addEventListener("keydown", (event) => {
  const lastAsked = turns.findLastIndex((turn) => turn.role === "user");
  if (sends(event)) {
    event.preventDefault();
    if (!answering) byId("composer").requestSubmit();
  } else if (event.key === "ArrowUp" && !byId("prompt").value && lastAsked >= 0) {
    event.preventDefault();
    edit(lastAsked);
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !byId("settings").open) stop();
  if (event.altKey && event.code === "KeyN") restart();
  if (event.altKey && event.code === "KeyS") byId("settings").showModal();
});
byId("new").addEventListener("click", restart);
byId("theme").addEventListener("click", nextTheme);
byId("open-settings").addEventListener("click", () => byId("settings").showModal());
byId("settings").addEventListener("close", saveSettings);
byId("defaults").addEventListener("click", () => {
  localStorage.removeItem("turbosparse.settings");
  loadSettings();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => applyTheme(theme()));

byId("examples").append(...EXAMPLES.map((text) => button(text, () => submit(text))));
loadSettings();
applyTheme(theme());
showModel();
