// Votes on their way: kept in localStorage until the server has them, and sent again until it has.

const memory = new Map(); // where the browser keeps nothing

export const storage = {
  get(key) {
    try { return localStorage.getItem(key) ?? memory.get(key) ?? null; } catch { return memory.get(key) ?? null; }
  },
  set(key, value) {
    try { localStorage.setItem(key, value); } catch { memory.set(key, value); }
  },
  remove(key) {
    try { localStorage.removeItem(key); } catch { /* nothing kept */ }
    memory.delete(key);
  },
  keys() {
    try { return [...Object.keys(localStorage), ...memory.keys()]; } catch { return [...memory.keys()]; }
  },
};

export class Queue {
  // rater: the votes are of; send(trial, answers): resolves once the vote is kept; rejects with an error that has
  // `final` where sending it again is useless. onchange(waiting, trouble, state, trial): after each change; of a vote that
  // arrived, with its trial and what the server says of the next ones.
  constructor(rater, send, onchange) {
    this.prefix = `vote:${rater}:`;
    this.send = send;
    this.onchange = onchange;
    this.failures = 0;
    this.busy = false;
    window.addEventListener('online', () => this.flush());
  }

  get waiting() {
    return storage.keys().filter(k => k.startsWith(this.prefix)).map(k => k.slice(this.prefix.length));
  }

  // A vote has a key of its own, so two tabs do not write over each other's.
  add(trial, answers) {
    storage.set(this.prefix + trial, JSON.stringify({at: Date.now(), answers}));
    return this.flush();
  }

  async flush() {
    if (this.busy) return;
    this.busy = true;
    clearTimeout(this.timer);
    try {
      for (let next = this.oldest(); next; next = this.oldest()) {
        const state = await this.deliver(next);
        storage.remove(this.prefix + next.trial);
        this.failures = 0;
        this.onchange(this.waiting.length, '', state, next.trial);
      }
    } catch (error) {
      this.failures += 1;
      this.timer = setTimeout(() => this.flush(), Math.max(1000 * (error.wait || 0), Math.min(10000, 250 * 2 ** this.failures)));
      this.onchange(this.waiting.length, error.message);
    } finally {
      this.busy = false;
    }
  }

  // What the server refuses for good is set aside, not lost.
  async deliver(next) {
    try {
      return await this.send(next.trial, next.answers);
    } catch (error) {
      if (!error.final) throw error;
      if (error.status !== 409) storage.set(`refused:${next.trial}`, JSON.stringify({...next, why: error.message}));
      return null;
    }
  }

  oldest() {
    const all = this.waiting.map(trial => ({trial, ...JSON.parse(storage.get(this.prefix + trial))}));
    return all.sort((a, b) => a.at - b.at)[0];
  }
}
