// In place of server.js in a static export: the plan is in the page, the answers stay in the browser until they are sent.

import {element} from './dom.js';
import {storage} from './queue.js';

const AHEAD = 3;
const plan = JSON.parse(document.getElementById('plan').textContent);
const place = `answer:${plan.token}:`;

function answers() {
  return plan.state.trials.map(t => storage.get(place + t.token)).filter(Boolean).map(text => JSON.parse(text));
}

function offlineState() {
  const open = plan.state.trials.filter(t => !storage.get(place + t.token));
  return {...plan.state, done: plan.state.total - open.length, trials: open.slice(0, AHEAD)};
}

export const backend = {
  token: plan.token,
  invited: !storage.get(`agreed:${plan.token}`),
  offline: true,
  about: async () => plan.about,
  join: async () => {
    storage.set(`agreed:${plan.token}`, 'yes');
    return {rater: plan.token};
  },
  link: () => location.href,
  state: async () => offlineState(),
  vote: async (trial, given) => {
    if (!storage.get(place + trial)) storage.set(place + trial, JSON.stringify({trial, ...given, received: Date.now() / 1000}));
    return offlineState();
  },
  finish: () => {
    const file = new Blob([JSON.stringify({rater: plan.token, answers: answers()}, null, 1)], {type: 'application/json'});
    const name = `answers-${plan.token.slice(0, 8)}.json`;
    const save = element('a', {class: 'primary button', id: 'finished', download: name, href: URL.createObjectURL(file)}, 'Save my answers');
    return [element('p', {}, `Please save your answers as a file (${name}) and send it to whoever invited you.`), element('div', {class: 'actions'}, save)];
  },
};
