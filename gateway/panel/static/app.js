/** The panel: its frame, its views, and what stands over them when the gateway is away or wants a key. */
import { html, render, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { route } from "./core/route.js";
import { seconds } from "./core/format.js";
import { forgetKey, session, useKey } from "./core/session.js";
import { begin, state } from "./core/state.js";
import { useStore } from "./core/store.js";
import { Announcer, announce } from "./parts/announce.js";
import { Dialog, useNow } from "./parts/basics.js";
import { Icon } from "./parts/icons.js";
import { app as texts, key as keyTexts } from "./texts.js";
import { Compare } from "./views/compare.js";
import { NewSecret } from "./views/keys.js";
import { Make } from "./views/make.js";
import { Operate } from "./views/operate.js";
import { Watch } from "./views/watch.js";

const VIEWS = {
  make: () => html`<${Make} />`,
  watch: (ids) => html`<${Watch} id=${ids[0]} />`,
  compare: (ids) => html`<${Compare} ids=${ids.slice(0, 2)} />`,
  operate: () => html`<${Operate} />`,
};
const TABS = { make: "make", watch: "watch", compare: "watch", operate: "operate" };

function App() {
  const { view, ids } = useStore(route, (now) => now);
  const refused = useStore(session, (now) => now.refused);
  const settings = useStore(state, (now) => now.settings);
  const tab = TABS[view] ?? "make";
  const main = useRef();
  const isFirst = useRef(true);
  useEffect(() => {
    document.title = texts.title(texts.views[tab]);
    if (!isFirst.current) main.current.querySelector("h1")?.focus();
    isFirst.current = false;
  }, [tab]);
  return html`
    <a
      class="skip"
      href="#main"
      onClick=${(event) => {
        event.preventDefault(); // the part behind # names the view
        main.current.focus();
      }}
      >${texts.skip}</a
    >
    <${Top} tab=${tab} settings=${settings} />
    <${Away} />
    <main id="main" ref=${main} tabindex="-1">
      ${refused ? html`<${KeyGate} why=${refused} />` : settings ? (VIEWS[view] ?? VIEWS.make)(ids) : html`<p class="hint">${texts.loading}</p>`}
    </main>
    <${NewSecret} />
    <${Announcer} />
  `;
}

function Top({ tab, settings }) {
  const [isOpen, setOpen] = useState(false);
  const hasKey = useStore(session, (now) => now.key !== null);
  const tabs = Object.entries(texts.views).filter(([name]) => name !== "operate" || settings?.caller.scopes.includes("admin"));
  return html`<header class="top">
    <a class="brand" href="#/make"><img src="panel/icon.svg" alt="" width="28" height="28" />${texts.name}</a>
    <nav aria-label=${texts.navigation}>
      ${tabs.map(([name, text]) => html`<a href="#/${name}" aria-current=${name === tab ? "page" : undefined}>${text}</a>`)}
    </nav>
    <div class="top-end">
      <${Connection} />
      <a href="docs" class="quiet-link">${texts.reference}</a>
      ${(hasKey || settings) &&
      html`<button type="button" class="quiet" onClick=${() => setOpen(true)}><${Icon} name="key" />${settings?.caller.key_id ? settings.caller.name : keyTexts.open}</button>`}
    </div>
    ${isOpen &&
    html`<${Dialog} title=${keyTexts.title} onClose=${() => setOpen(false)}>
      ${settings?.caller.is_open && html`<p>${keyTexts.open_gateway}</p>`}
      ${settings?.caller.key_id && html`<p>${keyTexts.caller(settings.caller.name)}. ${keyTexts.scopes(settings.caller.scopes.join(", "))}</p>`}
      <${KeyForm} onUsed=${() => setOpen(false)} />
      <div class="buttons">
        ${hasKey &&
        html`<button
          type="button"
          class="quiet"
          onClick=${() => {
            forgetKey();
            begin();
            setOpen(false);
          }}
        >
          ${keyTexts.forget}
        </button>`}
        <button type="button" class="quiet" onClick=${() => setOpen(false)}>${texts.close}</button>
      </div>
    <//>`}
  </header>`;
}

function KeyGate({ why }) {
  return html`<section class="card gate" aria-labelledby="gate-title">
    <h1 id="gate-title" tabindex="-1">${keyTexts.title}</h1>
    <p role="alert">${keyTexts[why]}</p>
    <${KeyForm} />
  </section>`;
}

function KeyForm({ onUsed }) {
  const input = useRef();
  const onSubmit = (event) => {
    event.preventDefault();
    const entered = input.current.value.trim();
    if (!entered) return input.current.focus();
    useKey(entered);
    begin();
    onUsed?.();
  };
  return html`<form class="keyform" onSubmit=${onSubmit}>
    <label for="key-input">${keyTexts.label}</label>
    <input id="key-input" ref=${input} type="password" autocomplete="off" spellcheck="false" aria-describedby="key-help" />
    <p class="hint" id="key-help">${keyTexts.explain}</p>
    <button type="submit" class="main">${keyTexts.use}</button>
  </form>`;
}

function Connection() {
  const { is } = useStore(state, (now) => now.connection);
  return html`<span class="connection connection-${is}"><span class="dot" aria-hidden="true"></span>${texts.connection[is]}</span>`;
}

function Away() {
  const connection = useStore(state, (now) => now.connection);
  const isAway = connection.is === "away";
  const nowMs = useNow(500, isAway);
  const wasAway = useRef(false);
  useEffect(() => {
    if (isAway) announce(texts.away(""));
    else if (wasAway.current) announce(texts.back);
    wasAway.current = isAway;
  }, [isAway]);
  if (!isAway) return null;
  const leftS = Math.ceil((connection.retryAtMs - nowMs) / 1000);
  return html`<section class="away" aria-label=${texts.connection.away}>
    <${Icon} name="failed" />
    <p>${texts.away(leftS > 0 ? texts.awayIn(seconds(leftS)) : texts.awayNow)}</p>
  </section>`;
}

render(html`<${App} />`, document.getElementById("app"));
begin();
