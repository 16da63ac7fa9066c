'use strict';
(() => {
  const number = v => (Math.abs(v) >= 1e5 || (v && Math.abs(v) < 1e-3) ? v.toExponential(2) : String(+v.toPrecision(4))).replace('-', '\u2212');
  const nearest = (points, x) => points.reduce((best, p) => Math.abs(p[0] - x) < Math.abs(best[0] - x) ? p : best);

  // Curves: the numbers under the pointer, at the same iteration in all of them.
  const charts = [...document.querySelectorAll('svg[data-lines]')].map(svg => {
    const read = document.createElement('p'), cursor = document.createElementNS(svg.namespaceURI, 'line');
    read.className = 'read';
    cursor.setAttribute('class', 'cursor');
    (svg.parentElement.querySelector('.key') ?? svg).before(read);
    const keys = Object.keys(JSON.parse(svg.dataset.lines)), items = [...svg.parentElement.querySelectorAll('.key li')];
    const values = items.map(item => item.appendChild(document.createElement('b')));
    svg.append(cursor);
    const [left, right, top, bottom, x0, x1] = JSON.parse(svg.dataset.axis);
    const lines = Object.entries(JSON.parse(svg.dataset.lines)).filter(([, points]) => points.length);
    const last = Math.max(...lines.map(([, points]) => points.at(-1)[0]));
    function show(x) {
      const at = x === null ? last : nearest(lines.flatMap(([, points]) => points), x)[0];
      const told = new Map(lines.filter(([, p]) => x === null || at <= p.at(-1)[0]).map(([name, p]) => [name, number(nearest(p, at)[1])]));
      values.forEach((value, i) => { value.textContent = told.get(keys[i]) ?? ''; });
      read.textContent = `${x === null ? 'last, ' : 'at '}${at.toLocaleString('en')}${values.length ? '' : `: ${[...told.values()][0]}`}`;
      const across = left + (at - x0) / (x1 - x0) * (right - left);
      for (const [key, value] of Object.entries({x1: across, x2: across, y1: top, y2: bottom})) cursor.setAttribute(key, value);
      cursor.style.display = x === null ? 'none' : '';
    }
    svg.addEventListener('pointermove', event => {
      const box = svg.getBoundingClientRect();
      const across = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
      const x = x0 + (across - left) / (right - left) * (x1 - x0);
      for (const chart of charts) chart(x);
    });
    svg.addEventListener('pointerleave', () => { for (const chart of charts) chart(null); });
    show(null);
    return show;
  });

  // Pictures: one iteration of all viewers at a time.
  const steps = document.querySelector('.steps');
  const viewers = [...document.querySelectorAll('.viewer')];
  const framesOf = viewer => [...viewer.querySelectorAll('.frame')];
  const known = [...new Set(viewers.flatMap(framesOf).map(f => Number(f.dataset.step)))].sort((a, b) => a - b);
  const kept = {get: key => { try { return sessionStorage.getItem(key); } catch { return null; } },
    set: (key, value) => { try { sessionStorage.setItem(key, value); } catch { /* the page works without */ } }};
  let now = known.length - 1;

  function fit() {
    for (const viewer of viewers) {
      const image = viewer.querySelector('.now img');
      if (!image) continue;
      const w = Number(image.getAttribute('width')), room = viewer.parentElement.clientWidth;
      const most = (viewer.classList.contains('large') ? room : Math.min(room, viewers.length > 1 ? 420 : 620)) / w;
      viewer.style.width = `${w * (most > 2 ? Math.floor(most) : Math.min(most, 2))}px`;
      for (const img of viewer.querySelectorAll('img')) img.style.width = '100%';
    }
  }

  function go(to) {
    now = Math.max(0, Math.min(known.length - 1, to));
    for (const viewer of viewers) {
      const frames = framesOf(viewer), before = frames.filter(f => Number(f.dataset.step) <= known[now]);
      const chosen = before.at(-1) ?? frames[0];
      for (const frame of frames) frame.classList.toggle('now', frame === chosen);
      viewer.querySelector('output').textContent = `${Number(chosen.dataset.step).toLocaleString('en')} ${chosen.dataset.stage}`;
    }
    steps.querySelector('input').value = now;
    const stages = [...new Set([...document.querySelectorAll('.frame.now')].map(f => f.dataset.stage).filter(Boolean))];
    steps.querySelector('output').textContent = `iteration ${known[now].toLocaleString('en')}${viewers.length === 1 && stages.length ? ', ' + stages[0] : ''}`;
    kept.set('step', now === known.length - 1 ? '' : known[now]);
    fit();
  }

  if (steps && known.length) {
    steps.parentElement.classList.add('live');
    const slider = steps.querySelector('input');
    slider.max = known.length - 1;
    slider.oninput = () => go(Number(slider.value));
    for (const button of steps.querySelectorAll('[data-by]')) button.onclick = () => go(now + Number(button.dataset.by));
    for (const button of steps.querySelectorAll('[data-to]')) button.onclick = () => go(button.dataset.to === 'first' ? 0 : known.length - 1);
    for (const viewer of viewers) viewer.onclick = event => { if (event.target.matches('img')) { viewer.classList.toggle('large'); fit(); } };
    addEventListener('resize', fit);
    addEventListener('keydown', event => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target === slider) return;
      if (event.key === 'ArrowLeft') go(now - 1);
      else if (event.key === 'ArrowRight') go(now + 1);
    });
    const before = Number(kept.get('step'));
    go(before && known.includes(before) ? known.indexOf(before) : known.length - 1);
  }

  const refresh = document.getElementById('refresh');
  if (refresh) {
    scrollTo(0, Number(kept.get('scroll')) || 0);
    setTimeout(() => { kept.set('scroll', String(scrollY)); location.reload(); }, 1000 * Number(refresh.dataset.seconds));
  }
})();
