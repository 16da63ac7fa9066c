// Pictures in panes that zoom and pan as one. Measures are in pixels of the results; lq is stretched to their size.

const LEVELS = [0.125, 0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64];
const PATIENCE = 20000; // ms for a picture to come
const KEEP = 0.5; // of the pane's middle, this far out a picture may be drawn

export class View {
  // stages: {lq, a, b}: elements; onzoom: called with device pixels a pixel, and whether that is what fits.
  constructor(stages, onzoom) {
    this.stages = stages;
    this.onzoom = onzoom;
    this.size = null;
    this.flipped = false;
    this.pointers = new Map();
    this.shown = {};
    for (const [role, stage] of Object.entries(stages)) {
      const image = new Image(), label = document.createElement('span');
      image.alt = role === 'lq' ? 'Reference' : `Result ${role.toUpperCase()}`;
      image.draggable = false;
      label.textContent = role === 'lq' ? 'Reference' : role.toUpperCase();
      this.shown[role] = {image, label};
      stage.append(image, label);
      this.listen(stage);
    }
    new ResizeObserver(() => this.size && (this.atFit ? this.fit() : this.draw())).observe(stages.a);
  }

  // Show the pictures of a trial, once all are there; `sources`: {lq, a, b}: addresses.
  async load(sources, width, height, retry) {
    this.flip(false);
    this.size = null;
    await Promise.all(Object.entries(this.shown).map(([role, {image}]) => loaded(image, sources[role], retry)));
    this.size = {width, height};
    this.highest = 0;
    this.fit();
  }

  get ratio() { return window.devicePixelRatio || 1; }

  get lowest() {
    const {width, height} = this.size, stages = Object.values(this.stages); // on a phone the reference's is another
    const most = Math.min(...stages.map(s => Math.min(s.clientWidth / width, s.clientHeight / height))) * this.ratio;
    return most > 1 ? Math.floor(most) : most;
  }

  fit() {
    this.zoom = this.lowest;
    this.atFit = true;
    this.x = this.size.width / 2;
    this.y = this.size.height / 2;
    this.draw();
  }

  // Zoom to `zoom` device pixels a pixel; what is under (left, top) of a stage stays there.
  zoomTo(zoom, left = this.stages.a.clientWidth / 2, top = this.stages.a.clientHeight / 2) {
    if (!this.size) return;
    const before = this.zoom / this.ratio;
    this.zoom = Math.min(LEVELS[LEVELS.length - 1], Math.max(Math.min(this.lowest, 1), zoom));
    this.atFit = Math.abs(this.zoom - this.lowest) < 1e-6;
    const after = this.zoom / this.ratio, {clientWidth, clientHeight} = this.stages.a;
    this.x += (left - clientWidth / 2) * (1 / before - 1 / after);
    this.y += (top - clientHeight / 2) * (1 / before - 1 / after);
    this.draw();
  }

  // One level closer (1) or farther (-1); the size that fits is a level.
  step(direction, left, top) {
    if (!this.size) return;
    const levels = [...LEVELS, this.lowest].filter(l => l >= Math.min(this.lowest, 1)).sort((a, b) => a - b);
    const next = direction > 0 ? levels.find(l => l > this.zoom * 1.01) : levels.reverse().find(l => l < this.zoom * 0.99);
    if (next) this.zoomTo(next, left, top);
  }

  // Move the pictures by CSS pixels.
  pan(right, down) {
    if (!this.size) return;
    this.x -= right * this.ratio / this.zoom;
    this.y -= down * this.ratio / this.zoom;
    this.draw();
  }

  // Exchange A and B in place.
  flip(on) {
    if (on === this.flipped) return;
    this.flipped = on;
    const {a, b} = this.shown, places = on ? [b, a] : [a, b];
    this.stages.a.append(places[0].image, places[0].label);
    this.stages.b.append(places[1].image, places[1].label);
  }

  draw() {
    const scale = this.zoom / this.ratio, {width, height} = this.size, {clientWidth, clientHeight} = this.stages.a;
    this.x = clamp(this.x, width, KEEP * clientWidth / scale);
    this.y = clamp(this.y, height, KEEP * clientHeight / scale);
    for (const [role, {image}] of Object.entries(this.shown)) {
      const stage = this.stages[role];
      image.style.width = `${width * scale}px`;
      image.style.height = `${height * scale}px`;
      const left = this.round(stage.clientWidth / 2 - this.x * scale);
      const top = this.round(stage.clientHeight / 2 - this.y * scale);
      image.style.transform = `translate(${left}px, ${top}px)`;
      image.classList.toggle('exact', role === 'lq' || this.zoom >= 1);
    }
    this.highest = Math.max(this.highest, this.zoom);
    this.onzoom(this.zoom, this.atFit);
  }

  round(length) { return Math.round(length * this.ratio) / this.ratio; }

  listen(stage) {
    const at = event => {
      const box = stage.getBoundingClientRect();
      return {left: event.clientX - box.left, top: event.clientY - box.top};
    };
    stage.addEventListener('wheel', event => {
      event.preventDefault();
      this.step(event.deltaY < 0 ? 1 : -1, at(event).left, at(event).top);
    }, {passive: false});
    stage.addEventListener('dblclick', event => {
      if (this.zoom > this.lowest * 1.01) this.fit();
      else this.zoomTo(Math.max(4, this.lowest * 4), at(event).left, at(event).top);
    });
    stage.addEventListener('pointerdown', event => {
      stage.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, {stage, ...at(event)});
    });
    stage.addEventListener('pointermove', event => this.drag(event.pointerId, stage, at(event)));
    for (const kind of ['pointerup', 'pointercancel', 'lostpointercapture']) {
      stage.addEventListener(kind, event => this.pointers.delete(event.pointerId));
    }
  }

  // One finger or the mouse moves the pictures; two fingers also zoom.
  drag(id, stage, now) {
    const before = this.pointers.get(id);
    if (!before || !this.size) return;
    const other = [...this.pointers].find(([key, p]) => key !== id && p.stage === stage)?.[1];
    this.pointers.set(id, {stage, ...now});
    if (!other) {
      this.pan(now.left - before.left, now.top - before.top);
      return;
    }
    const reach = p => Math.max(1, Math.hypot(p.left - other.left, p.top - other.top));
    this.pan((now.left - before.left) / 2, (now.top - before.top) / 2);
    this.zoomTo(this.zoom * reach(now) / reach(before), (now.left + other.left) / 2, (now.top + other.top) / 2);
  }
}

function clamp(value, length, half) {
  return 2 * half >= length ? length / 2 : Math.min(length - half, Math.max(half, value));
}

// Resolves once the picture can be drawn; tries again, ever more rarely, while it cannot be had or does not come.
function loaded(image, source, retry) {
  return new Promise(resolve => {
    let tries = 0, timer;
    const load = () => {
      clearTimeout(timer);
      timer = setTimeout(again, PATIENCE);
      image.src = source + (tries && source.startsWith('/') ? `?again=${tries}` : '');
      if (image.complete && image.naturalWidth) done();
    };
    const done = () => {
      clearTimeout(timer);
      image.onload = image.onerror = null;
      resolve();
    };
    const again = () => {
      retry();
      tries += 1;
      clearTimeout(timer);
      timer = setTimeout(load, Math.min(8000, 300 * 2 ** Math.min(tries, 5)));
    };
    image.onload = done;
    image.onerror = again;
    load();
  });
}
