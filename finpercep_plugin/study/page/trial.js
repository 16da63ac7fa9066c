// One comparison on the screen: pictures, two questions one after the other, keys, minimum time.

import {at} from './dom.js';
import {View} from './view.js';

const PAUSE = 350; // ms after an answer in which a second click or key does not answer the next question

export class TrialScreen {
  // onanswer(trial, answers): both questions are answered; onpause, onhelp: the buttons.
  constructor({onanswer, onpause, onhelp}) {
    this.onanswer = onanswer;
    this.onhelp = onhelp;
    const stages = Object.fromEntries([...document.querySelectorAll('.pane')].map(p => [p.dataset.role, p.firstElementChild]));
    this.view = new View(stages, (zoom, fits) => {
      at('zoom').textContent = fits ? 'fit' : `${Math.round(100 * zoom)} %`;
      at('fit').dataset.zoom = zoom;
    });
    this.trial = null;
    this.clicks();
    this.keys();
    at('pause').onclick = onpause;
    at('help').onclick = onhelp;
    document.addEventListener('visibilitychange', () => this.tick());
    setInterval(() => this.tick(), 100);
  }

  progress(done, total) {
    at('progress').max = total;
    at('progress').value = done;
    at('progress-text').textContent = `${Math.min(done + 1, total)} of ${total}`;
  }

  // Lay a trial before the rater; resolves when it can be answered.
  async show(trial, questions, minSeconds) {
    this.trial = null;
    this.answers = {};
    this.flips = 0;
    this.seen = 0;
    this.questions = questions;
    this.minSeconds = minSeconds;
    this.practice = trial.practice;
    this.ask();
    at('loading').hidden = false;
    at('loading').textContent = 'Loading\u2026';
    const patience = () => { at('loading').textContent = 'Waiting for the connection\u2026'; };
    await this.view.load({lq: trial.lq, a: trial.a, b: trial.b}, trial.width, trial.height, patience);
    at('loading').hidden = true;
    this.trial = trial;
    this.last = performance.now();
    this.quietUntil = this.last + PAUSE;
    this.tick();
  }

  ask() {
    const number = Object.keys(this.answers).length, question = this.questions[Math.min(number, 1)];
    const practice = this.practice ? ' \u00b7 practice' : '';
    at('question-number').textContent = `Question ${Math.min(number, 1) + 1} of 2 \u00b7 ${question.name}${practice}`;
    at('question-text').textContent = question.text;
    at('back').hidden = number === 0;
    at('question').classList.remove('new');
    void at('question').offsetWidth; // so that the animation starts anew
    at('question').classList.add('new');
  }

  // Time counts while the page is seen and the pictures are there.
  tick() {
    const now = performance.now();
    if (this.trial && !document.hidden && !this.held()) this.seen += now - this.last;
    this.last = now;
    const open = Boolean(this.trial) && !this.held() && this.seen >= 1000 * this.minSeconds;
    const waited = this.trial ? Math.min(1, this.seen / (1000 * this.minSeconds || 1)) : 0;
    for (const id of ['choose-a', 'choose-b']) {
      at(id).disabled = !open;
      at(id).style.setProperty('--waited', waited);
    }
  }

  held() { return at('dialog').open; }

  choose(side) {
    this.tick();
    const now = performance.now();
    if (at('choose-a').disabled || now < this.quietUntil || this.view.flipped) return;
    this.quietUntil = now + PAUSE;
    const number = Object.keys(this.answers).length;
    this.answers[this.questions[number].name] = side;
    if (number === 0) {
      this.ask();
      return;
    }
    const trial = this.trial;
    this.trial = null;
    this.tick();
    const seconds = Math.max(this.minSeconds, Math.round(this.seen) / 1000);
    this.onanswer(trial, {...this.answers, seconds, zoom: Math.round(100 * this.view.highest) / 100, flips: this.flips});
  }

  back() {
    if (!this.trial || this.held()) return;
    this.answers = {};
    this.ask();
  }

  flip(on) {
    if (on === this.view.flipped || (on && (!this.trial || this.held()))) return;
    if (on) this.flips += 1;
    this.view.flip(on);
    at('flip').classList.toggle('on', on);
  }

  clicks() {
    for (const side of ['a', 'b']) {
      at(`choose-${side}`).onclick = event => {
        if (event.detail) event.currentTarget.blur(); // so that space flips and does not press it again
        if (event.detail < 2) this.choose(side); // the second of a double click answers nothing
      };
    }
    at('back').onclick = () => this.back();
    at('out').onclick = () => this.view.step(-1);
    at('in').onclick = () => this.view.step(1);
    at('fit').onclick = () => this.view.size && this.view.fit();
    at('flip').onpointerdown = () => this.flip(true);
    for (const kind of ['pointerup', 'pointerleave', 'pointercancel']) at('flip').addEventListener(kind, () => this.flip(false));
    at('flip').oncontextmenu = event => event.preventDefault();
    window.addEventListener('blur', () => this.flip(false));
  }

  keys() {
    const step = 60; // CSS pixels
    const pans = {w: [0, step], a: [step, 0], s: [0, -step], d: [-step, 0]};
    document.addEventListener('keydown', event => {
      if (at('trial').hidden || this.held() || event.ctrlKey || event.metaKey || event.altKey) return;
      const key = event.key.toLowerCase();
      const single = {
        arrowleft: () => this.choose('a'), 1: () => this.choose('a'), arrowright: () => this.choose('b'), 2: () => this.choose('b'),
        f: () => this.flip(true), ' ': () => this.flip(true), backspace: () => this.back(), h: () => this.onhelp(),
        '?': () => this.onhelp(), p: () => at('pause').click(), 0: () => this.view.size && this.view.fit(),
      }[key];
      const steady = {'+': () => this.view.step(1), '=': () => this.view.step(1), '-': () => this.view.step(-1)}[key];
      if (key === ' ' && event.target.tagName === 'BUTTON' && event.target.id !== 'flip') return; // presses that button
      if (single || steady || pans[key]) event.preventDefault();
      if (pans[key]) this.view.pan(...pans[key]);
      else if (steady) steady();
      else if (single && !event.repeat) single();
    });
    document.addEventListener('keyup', event => { if (event.key.toLowerCase() === 'f' || event.key === ' ') this.flip(false); });
  }
}
