'use strict';
(() => {
  const cards = [...document.querySelectorAll('.card')];
  const menus = [...document.querySelectorAll('.menus select')];
  const viewer = document.getElementById('viewer');
  const at = id => document.getElementById(id);
  const frame = at('v-frame');
  let card = null, shot = 0, before = 0;

  const shown = () => cards.filter(c => !c.hidden);
  const shotsOf = c => [...c.querySelectorAll('.shot')];

  function narrow() {
    for (const c of cards) {
      const tags = c.dataset.tags.split('\n');
      c.hidden = menus.some(m => m.value && !tags.includes(`${m.dataset.kind}=${m.value}`));
    }
    at('shown').textContent = menus.some(m => m.value) ? `${shown().length} of ${cards.length} shown` : '';
  }

  // As large as fits, in whole multiples of the picture's pixels where it is enlarged.
  function fit() {
    const image = frame.querySelector('img'), stage = at('v-stage');
    if (!image) return;
    const w = Number(image.getAttribute('width')), h = Number(image.getAttribute('height'));
    const most = Math.min((stage.clientWidth - 16) / w, stage.clientHeight / h);
    frame.style.width = `${w * (most > 2 ? Math.floor(most) : most)}px`;
  }

  function show(c, number) {
    const shots = shotsOf(c);
    if (!shots.length) return;
    if (card === c && number !== shot) before = shot;
    card = c;
    shot = (number + shots.length) % shots.length;
    frame.replaceChildren(...[...shots[shot].children].map(e => e.cloneNode(true)));
    for (const image of frame.querySelectorAll('img')) image.loading = 'eager';
    at('v-name').textContent = c.dataset.name;
    at('v-facts').textContent = [...c.querySelectorAll('.tag')].map(t => t.textContent).join(' \u00b7 ');
    at('v-shots').replaceChildren(...shots.map((s, i) => {
      const button = document.createElement('button');
      button.type = 'button';
      button.textContent = s.querySelector('img').alt;
      button.setAttribute('aria-pressed', String(i === shot));
      button.onclick = () => show(c, i);
      return button;
    }));
    if (!viewer.open) viewer.showModal();
    fit();
  }

  function step(by) {
    const list = shown();
    const now = viewer.open ? card : document.activeElement.closest('.card');
    let next = now ? list.indexOf(now) : by > 0 ? -1 : list.length;
    do next += by; while (viewer.open && list[next] && !shotsOf(list[next]).length);
    if (!list[next]) return;
    if (viewer.open) show(list[next], shot);
    list[next].focus({preventScroll: true});
    list[next].scrollIntoView({block: 'nearest'});
  }

  for (const c of cards) shotsOf(c).forEach((s, i) => { s.onclick = () => show(c, i); });
  for (const menu of menus) menu.onchange = narrow;
  at('v-close').onclick = () => viewer.close();
  at('v-prev').onclick = () => step(-1);
  at('v-next').onclick = () => step(1);
  frame.onclick = () => show(card, shot + 1);
  viewer.onclose = () => { if (card) card.focus({preventScroll: true}); };
  addEventListener('resize', fit);
  narrow();

  addEventListener('keydown', event => {
    const key = event.key, target = event.target instanceof Element ? event.target : document.body;
    if (event.ctrlKey || event.metaKey || event.altKey || target.matches('select')) return;
    if (key === 'm') document.body.classList.toggle('outlines');
    else if (key === 'j' || (viewer.open && key === 'ArrowDown')) step(1);
    else if (key === 'k' || (viewer.open && key === 'ArrowUp')) step(-1);
    else if (viewer.open && key === 'ArrowRight') show(card, shot + 1);
    else if (viewer.open && key === 'ArrowLeft') show(card, shot - 1);
    else if (viewer.open && key === ' ') show(card, before);
    else if (viewer.open && key >= '1' && key <= '9' && shotsOf(card)[key - 1]) show(card, key - 1);
    else if (!viewer.open && key === 'Enter' && target.matches('.card')) show(target, 0);
    else return;
    event.preventDefault();
  });
})();
