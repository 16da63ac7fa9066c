// From the invitation to the last vote.

import {backend} from './server.js';
import {at, element} from './dom.js';
import {Queue, storage} from './queue.js';
import {TrialScreen} from './trial.js';

const wait = ms => new Promise(resolve => setTimeout(resolve, ms));

function say(...content) {
  at('trial').hidden = true;
  at('text').hidden = false;
  at('text').replaceChildren(...content);
}

// Ask until there is an answer; what is refused for good is shown.
async function insist(question) {
  for (let tries = 0; ; tries++) {
    try {
      return await question();
    } catch (error) {
      if (error.final) {
        say(element('h1', {}, 'This does not work'), element('p', {}, `${error.message}.`));
        throw error;
      }
      at('net').textContent = 'waiting for the connection';
      if (at('trial').hidden) say(element('h1', {}, 'One moment'), element('p', {class: 'soft', role: 'status'}, 'Waiting for the connection\u2026'));
      await wait(Math.max(1000 * (error.wait || 0), Math.min(8000, 400 * 2 ** tries)));
    }
  }
}

function linkField(rater) {
  const field = element('input', {class: 'link', readonly: '', value: backend.link(rater), 'aria-label': 'Your own link'});
  field.onfocus = () => field.select();
  return field;
}

async function invite() {
  const known = storage.get(`rater:${backend.token}`);
  const study = await insist(backend.about);
  const agree = element('button', {class: 'primary', type: 'button', id: 'agree'}, 'I agree and take part');
  agree.onclick = async () => {
    agree.disabled = true;
    const key = storage.get(`key:${backend.token}`) || random();
    storage.set(`key:${backend.token}`, key);
    const {rater} = await insist(() => backend.join(key));
    storage.set(`rater:${backend.token}`, rater);
    location.assign(backend.link(rater));
  };
  const again = element('button', {class: 'primary', type: 'button', id: 'continue'}, 'Go on where I stopped');
  again.onclick = () => location.assign(backend.link(known));
  say(element('h1', {}, study.title), element('p', {}, `You will see ${count(study.trials, 'pair')} of pictures, which takes about ${count(study.minutes, 'minute')}. You can stop at any time and go on later.`),
      element('div', {class: 'consent'}, study.consent), element('div', {class: 'actions'}, known ? again : agree));
}

function count(number, what) { return `${number} ${what}${number === 1 ? '' : 's'}`; }

function random() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map(b => b.toString(16).padStart(2, '0')).join('');
}

const KEYS = [
  ['\u2190 \u2192 or 1 2', 'choose A or B'], ['F or space, held', 'A and B exchanged in place'], ['+ \u2212 or wheel', 'zoom'],
  ['W A S D or drag', 'move'], ['0', 'whole picture'], ['Backspace', 'back to the first question'], ['P, H', 'pause, help'],
];

function keyList() {
  return element('dl', {}, ...KEYS.flatMap(([key, what]) => [element('dt', {}, key), element('dd', {}, what)]));
}

function touchHint() {
  return element('p', {class: 'soft touch'}, 'Drag to move, pinch to zoom, tap twice to come close, hold \u201cHold to flip\u201d to exchange A and B in place.');
}

function dialog(...content) {
  const box = at('dialog'), close = element('button', {class: 'primary', type: 'button', onclick: () => box.close()}, 'Go on');
  box.replaceChildren(...content, element('div', {class: 'actions'}, close));
  if (!box.open) box.showModal();
}

function help() {
  dialog(element('h2', {}, 'How to compare'),
         element('p', {}, 'The reference is a picture of low quality. A and B are two attempts to restore it. All three move and zoom together, down to single pixels. You are asked two questions about each pair; there is always one answer to choose.'),
         touchHint(), keyList());
}

function instructions(state, start) {
  const go = element('button', {class: 'primary', type: 'button', id: 'start', onclick: start}, state.done ? 'Go on' : 'Start');
  const list = state.questions.map(q => element('li', {}, q.text));
  const keep = backend.offline ? 'Your answers stay in this browser until you send them at the end.'
    : 'Your answers are stored as you give them. To go on later, or on another device, keep your own link:';
  say(element('h1', {}, state.title),
      element('p', {}, 'You see a reference picture of low quality, and two attempts to restore it, A and B. For each pair there are two questions:'),
      element('ul', {}, ...list), element('p', {}, 'Zoom in and compare the same place in both. A few pairs at the start are for practice.'),
      element('p', {class: 'soft'}, keep), ...(backend.offline ? [] : [linkField(backend.token)]), touchHint(), keyList(), element('div', {class: 'actions'}, go));
  go.focus({preventScroll: true}); // what is to be read first stays in sight
}

class Study {
  constructor() {
    this.state = null;
    this.gone = new Set(); // answered or sent in this page
    this.queue = new Queue(backend.token, backend.vote, (waiting, trouble, state, trial) => {
      at('net').textContent = trouble ? `${trouble} \u00b7 ${count(waiting, 'answer')} kept here` : '';
      if (trial) this.gone.add(trial); // also where an older state comes in after this
      if (state) this.state = state;
      if (this.missing) this.missing();
    });
    this.screen = new TrialScreen({onanswer: (trial, answers) => this.answered(trial, answers), onpause: () => this.pause(), onhelp: help});
  }

  async begin() {
    this.queue.flush();
    this.state = await insist(backend.state);
    at('net').textContent = '';
    if (this.state.trials.length === 0) return this.next();
    instructions(this.state, () => this.next());
  }

  // Trials that neither the server has votes on nor the queue.
  get open() {
    const sent = new Set([...this.queue.waiting, ...this.gone]);
    return this.state.trials.filter(t => !sent.has(t.token));
  }

  async next() {
    while (this.open.length === 0 && this.queue.waiting.length) {
      await new Promise(resolve => { this.missing = resolve; });
      this.missing = null;
    }
    if (this.open.length === 0) this.state = await insist(backend.state);
    if (this.state.trials.length === 0) return this.end();
    if (this.open.length === 0) return location.reload(); // an answer was refused: ask again
    const [trial, ...ahead] = this.open;
    at('text').hidden = true;
    at('trial').hidden = false;
    this.screen.progress(this.state.done + this.queue.waiting.length, this.state.total);
    await this.screen.show(trial, this.state.questions, this.state.min_seconds);
    for (const later of ahead) for (const source of [later.lq, later.a, later.b]) new Image().src = source;
  }

  answered(trial, answers) {
    this.gone.add(trial.token);
    this.queue.add(trial.token, answers);
    this.next();
  }

  pause() {
    const kept = backend.offline ? [element('p', {}, 'Open the same page in this browser to go on later.')]
      : [element('p', {}, 'All your answers are stored. You can close this page and come back with your own link:'), linkField(backend.token)];
    dialog(element('h2', {}, 'Paused'), ...kept);
  }

  end() {
    say(element('h1', {}, 'Thank you'), element('p', {}, 'That was the last pair.'), ...(backend.offline ? backend.finish() : [
      element('p', {class: 'soft', id: 'finished'}, 'All your answers are stored. You can close this page.')]));
  }
}

window.addEventListener('pageshow', event => { if (event.persisted) location.reload(); });
if (backend.invited) invite();
else new Study().begin();
