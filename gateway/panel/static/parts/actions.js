/** What can be done with a task: play, download, cancel, again. */
import { html, useEffect, useRef, useState } from "../vendor/preact-htm.js";
import { follow } from "../core/requests.js";
import { cancelTask, objectUrl, sendAgain, state, videoUrl } from "../core/state.js";
import { useStore } from "../core/store.js";
import { task as texts } from "../texts.js";
import { announce } from "./announce.js";
import { Confirm, Trouble, useAction } from "./basics.js";
import { Icon } from "./icons.js";
import { Thumbnail } from "./picture.js";

/** The video of *task*: its thumbnail until somebody wants to see it. *player* gets the element. */
export function Player({ task, player }) {
  const [url, setUrl] = useState(null);
  const leaving = useRef();
  const fetching = useAction(async () => {
    leaving.current = new AbortController();
    setUrl(await videoUrl(ownVideo(task), leaving.current.signal));
  });
  useEffect(() => () => leaving.current?.abort(), []);
  useEffect(() => () => url?.startsWith("blob:") && URL.revokeObjectURL(url), [url]);
  const element = useRef();
  useEffect(() => {
    if (url !== null) element.current.focus();
  }, [url]);
  if (url !== null) {
    return html`<div class="player">
      <video
        ref=${(node) => {
          element.current = node;
          if (player) player.current = node;
        }}
        src=${url}
        controls
        autoplay
        loop
        muted
        playsinline
        aria-label=${task.parameters.prompt}
      />
    </div>`;
  }
  return html`<div class="player">
    <${Thumbnail} task=${task} />
    ${task.links.video &&
    html`<button type="button" class="play" disabled=${fetching.isBusy} onClick=${fetching.run}>
      <${Icon} name="play" />${fetching.isBusy ? texts.loadingVideo : texts.play}
    </button>`}
    <${Trouble} error=${fetching.error} />
  </div>`;
}

/** The video as the gateway itself sends it: the page may load nothing from elsewhere. */
const ownVideo = (task) => `${task.links.video}?redirect=false`;

async function saveVideo(task) {
  const url = await objectUrl(ownVideo(task));
  const link = document.createElement("a");
  link.href = url;
  link.download = `${task.model}-${task.id}.mp4`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the browser may still be reading it
}

/** The buttons of *task*. *onAgain* gets the new task. An operator is asked before a failed one is sent again. */
export function Actions({ task, onAgain }) {
  const [isAsking, setAsking] = useState(false);
  const [resending, setResending] = useState(null);
  const isOperator = useStore(state, (now) => now.settings?.caller.scopes.includes("admin"));
  const saving = useAction(() => saveVideo(task));
  const makeAgain = async (withNewSeed) => {
    const made = await sendAgain(task, { withNewSeed });
    follow(made);
    announce(texts.sentAgain);
    onAgain?.(made);
  };
  const again = useAction(makeAgain);
  // an operator sees the tasks of all callers
  const ask = (withNewSeed) => (isOperator && task.status === "failed" ? setResending({ withNewSeed }) : again.run(withNewSeed));
  return html`<div class="actions">
    <div class="buttons">
      ${task.links.video &&
      html`<button type="button" class="quiet" disabled=${saving.isBusy} onClick=${saving.run}>
        <${Icon} name="download" />${texts.download}
      </button>`}
      ${task.links.cancel &&
      html`<button type="button" class="quiet" onClick=${() => setAsking(true)}><${Icon} name="close" />${texts.cancel}</button>`}
      ${!task.links.cancel &&
      html`<button type="button" class="quiet" disabled=${again.isBusy} onClick=${() => ask(false)}>
          <${Icon} name="again" />${task.status === "failed" ? texts.againFailed : texts.againSame}
        </button>
        <button type="button" class="quiet" disabled=${again.isBusy} onClick=${() => ask(true)}>
          <${Icon} name="again" />${texts.againNew}
        </button>`}
    </div>
    <${Trouble} error=${saving.error ?? again.error} />
    ${isAsking &&
    html`<${Confirm}
      title=${texts.cancelTitle}
      effect=${texts.cancelEffect}
      yes=${texts.cancelYes}
      isGrave
      act=${() => cancelTask(task)}
      onClose=${() => setAsking(false)}
    />`}
    ${resending &&
    html`<${Confirm}
      title=${texts.againTitle}
      effect=${texts.againEffect(resending.withNewSeed)}
      yes=${texts.againFailed}
      act=${() => makeAgain(resending.withNewSeed)}
      onClose=${() => setResending(null)}
    />`}
  </div>`;
}
