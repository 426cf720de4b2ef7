/** API keys: listed, made, revoked. */
import { html, useRef, useState } from "../vendor/preact-htm.js";
import { Problem, json, serverNow } from "../core/api.js";
import { time } from "../core/format.js";
import { session, useKey } from "../core/session.js";
import { begin } from "../core/state.js";
import { createStore, useStore } from "../core/store.js";
import { Confirm, CopyBox, Dialog } from "../parts/basics.js";
import { Table } from "../parts/table.js";
import { app, operate } from "../texts.js";

const texts = operate.keys;
const SCOPES = Object.keys(texts.scopeNames);

// Beside the view: the first key closes the gateway, and the view may go while its secret is still to be copied.
const made = createStore({ secret: null });

export function Keys({ of, again, settings }) {
  const [revoking, setRevoking] = useState(null);
  const rows = of.keys.map((key) => [
    key.caller,
    html`<code>${key.id}</code>`,
    key.scopes.join(", "),
    time(key.created_at, serverNow()),
    key.revoked_at ? texts.revoked(time(key.revoked_at, serverNow())) : texts.counts,
    key.revoked_at ? "" : html`<button type="button" class="quiet" onClick=${() => setRevoking(key)}>${texts.revoke}</button>`,
  ]);
  return html`<section class="card" aria-labelledby="keys-title">
    <h2 id="keys-title">${texts.title}</h2>
    ${of.is_open && html`<p class="notice">${texts.isOpen}</p>`}
    ${rows.length > 0 && html`<${Table} caption=${texts.title} head=${[texts.caller, texts.id, texts.scopes, texts.made, texts.state, ""]} rows=${rows} />`}
    <${NewKey} isFirst=${of.is_open} again=${again} />
    ${revoking &&
    html`<${Confirm}
      title=${texts.revokeTitle(revoking.caller)}
      effect=${[texts.revokeEffect, ...(revoking.id === settings.caller.key_id ? [texts.revokeOwn] : [])]}
      yes=${texts.revoke}
      isGrave
      act=${async () => {
        await json(`admin/keys/${encodeURIComponent(revoking.id)}`, { method: "DELETE" });
        again();
      }}
      onClose=${() => setRevoking(null)}
    />`}
  </section>`;
}

/** The secret of a key that was just made, until it is put away. */
export function NewSecret() {
  const secret = useStore(made, (now) => now.secret);
  if (secret === null) return null;
  const close = () => {
    made.update({ secret: null });
    if (session.get().key === secret) begin(); // this page uses it from now on
  };
  return html`<${Dialog} title=${texts.secretTitle} onClose=${close}>
    <p>${texts.secret}</p>
    <${CopyBox} text=${secret} label=${texts.secretTitle} />
    <div class="buttons"><button type="button" class="main" onClick=${close}>${app.close}</button></div>
  <//>`;
}

function NewKey({ isFirst, again }) {
  const caller = useRef();
  const [scopes, setScopes] = useState(isFirst ? ["admin"] : ["submit", "read"]);
  const [asked, setAsked] = useState(null);
  const [errors, setErrors] = useState("");
  const make = async () => {
    try {
      const { secret } = await json("admin/keys", { method: "POST", body: asked });
      if (isFirst) useKey(secret); // the gateway is closed now, to this page as well
      made.update({ secret });
      again();
    } catch (error) {
      if (!(error instanceof Problem) || error.errors.length === 0) throw error;
      setErrors(error.errors.map((each) => each.message).join("; "));
    }
  };
  const onSubmit = (event) => {
    event.preventDefault();
    setErrors("");
    setAsked({ caller: caller.current.value.trim(), scopes });
  };
  return html`<form class="newkey" onSubmit=${onSubmit}>
    <h3>${texts.make}</h3>
    <div class="field ${errors ? "is-wrong" : ""}">
      <label for="key-caller">${texts.caller}</label>
      <input id="key-caller" ref=${caller} autocomplete="off" required aria-describedby="key-errors" aria-invalid=${errors ? "true" : undefined} />
      <p class="error" id="key-errors" role="alert">${errors}</p>
    </div>
    <fieldset class="scopes">
      <legend>${texts.scopes}</legend>
      ${SCOPES.map(
        (scope) => html`<label class="check">
          <input
            type="checkbox"
            checked=${scopes.includes(scope)}
            onChange=${(event) => setScopes(SCOPES.filter((each) => (each === scope ? event.currentTarget.checked : scopes.includes(each))))}
          />
          ${texts.scopeNames[scope]}
        </label>`,
      )}
    </fieldset>
    <button type="submit" class="quiet">${texts.make}</button>
    ${asked &&
    html`<${Confirm}
      title=${texts.makeTitle}
      effect=${[texts.makeEffect(asked.caller, asked.scopes.join(", ")), ...(isFirst ? [texts.firstEffect] : [])]}
      yes=${texts.make}
      act=${make}
      onClose=${() => setAsked(null)}
    />`}
  </form>`;
}
